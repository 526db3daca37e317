"""Every family that docs/families.md names is built small, edited, saved, loaded, reverted and exported as it says.

The suite takes of each family one closed form, by turns, and R-SFT, of some CoRSA too; ``CORSA_EVERY_METHOD=1`` before
pytest, which is ``make families``, takes all methods that are registered.
"""

from __future__ import annotations

import copy
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from corsa_plugins.adapters import export_state
from corsa_plugins.alphaedit import AlphaEditor, EditState, KeyStatistics
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.weights import LayerUpdate
from corsa_plugins.errors import CorsaError
from corsa_plugins.methods.registry import method_spec, method_specs
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.stored import save_model
from corsa_plugins.rsft import RSFTSettings
from corsa_plugins.rsft.selection import trainable_parameters
from tests.conftest import DOCUMENTS, TEXTS
from tests.fixtures.alphaedit import SETTINGS
from tests.support.families import LATER, REQUESTS
from tests.support.families_page import EDITED, ROUTED, SHARED, edited_row, edited_rows, refused_rows, small
from tests.support.mixtures import PEFT_READS_EXPERTS
from trl_ext.methods import AdapterSettings

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
EVERY = bool(os.environ.get("CORSA_EVERY_METHOD"))
EVERY_FAMILY = [*EDITED, *SHARED, *ROUTED]
CLOSED = [spec.name for spec in method_specs() if spec.reversible]

REFUSALS = {
    *((name, "rsft-mergekit") for name in ("falcon", "gpt_neox", "granitemoehybrid")),
    *((name, "rsft-mergekit") for name in (*SHARED, *ROUTED) if name not in ("gpt_oss", "llama4", "gemma4_moe")),
    *(("llama4", name) for name in ("corsa", "lora-sft")),
    *((name, "f-learning") for name in (*SHARED, *ROUTED)),
}
"""As the page says."""

QUICK = replace(
    SETTINGS, layers=(0,), ridge=0.01, n_contexts=1, values=replace(SETTINGS.values, steps=2, lr=1.0), search=None
)
TRAINED = {
    "max_steps": 1, "learning_rate": 0.1, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False,
    "gradient_checkpointing": False,
}  # fmt: skip


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=torch.arange(3, 23)[None], use_cache=False).logits
    return result


def methods_for(name: str) -> list[str]:
    if EVERY:
        return [spec.name for spec in method_specs()]
    turn = EVERY_FAMILY.index(name) % len(CLOSED)
    return [CLOSED[turn], "rsft", *(["corsa"] if name in (*LATER, "mixtral") else [])]


def same_weights(model: Any, other: Any) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def options(name: str, statistics: KeyStatistics) -> dict[str, Any]:
    """The smallest settings that change something."""
    spec = method_spec(name)
    kind = spec.settings_class()
    given: dict[str, Any] = {"statistics": statistics} if spec.needs_statistics else {}
    if spec.reversible:
        given["settings"] = QUICK
    elif kind is RSFTSettings:
        merged = {} if name == "rsft" else {"weight": 0.8, "density": 0.5}
        given["settings"] = RSFTSettings(layer=1, epochs=1, steps=1, learning_rate=0.05, **merged)  # type: ignore[arg-type]
    elif kind is AdapterSettings:
        lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        given["settings"] = AdapterSettings(TRAINED, lora=lora, history_looks=0)
    return given


def refused(made: Any, model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Some say so when they start, others when they see the requests."""
    session = made.start(model, tokenizer, seed=0)
    try:
        session.update(REQUESTS[:1], folder)
    finally:
        session.close()


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_edited_by_methods_of_every_kind_and_given_back(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """An update by each method changes what the model says; the model is given back, and the update put in place
    again, bit for bit, and a closed form is taken back from its saved state."""
    model = small(name, len(tiny_tokenizer))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = logits(model)
    # of routed experts each is to see enough of it
    texts = DOCUMENTS if name in ROUTED else TEXTS[:6]
    statistics = collect_statistics(model, tiny_tokenizer, texts, (0,), n_tokens=10**6, length=32, sample_size=16)
    for number, method in enumerate(methods_for(name)):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = method_spec(method)(**options(method, statistics))
        if (name, method) in REFUSALS:
            with pytest.raises(CorsaError):
                refused(made, model, tiny_tokenizer, folder)
            continue
        after = []
        for act in ("update", "restore"):
            session = made.start(model, tiny_tokenizer, seed=0)
            try:
                session.update(REQUESTS[:1], folder) if act == "update" else session.restore(folder)
                after.append(logits(session.model))
            finally:
                session.close()
            assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()), (method, act)
        if method_spec(method).reversible:
            state = EditState.load(folder / "state")
            editor = AlphaEditor(model, tiny_tokenizer, statistics, made.settings, state=state)
            editor.apply()
            assert torch.equal(logits(model), after[0]), method
            editor.revert(editor.state.batches[0].name)
            assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()), method
        assert torch.equal(*after), method
        assert method_spec(method).changes == ("store",) or not torch.equal(after[0], before), method


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_the_page_says_what_is_found_edited_and_exported(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = small(name, len(tiny_tokenizer))
    row = edited_row(model)
    assert row in PAGE
    adapter = row.split(" | ")[-1].rstrip(" |")
    down = find_architecture(model).edited(1)

    base = copy.deepcopy(model)
    editor = AlphaEditor(model, tiny_tokenizer, None, replace(QUICK, layers=(1,)))
    left, right = torch.randn(down.d_out, 2) * 0.3, torch.randn(down.d_in, 2) * 0.3
    editor.adopt({1: LayerUpdate(right[:, :0], left, right)}, name="a")
    edited = logits(model)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(logits(loaded), edited)
    editor.state.save(tmp_path / "state")
    taken_back = AlphaEditor(loaded, tiny_tokenizer, None, QUICK, state=EditState.load(tmp_path / "state"))
    taken_back.revert("a")
    assert same_weights(loaded, base)
    if name in ROUTED:  # which R-SFT trains and not what routes, as the page says
        assert all(each.startswith(down.name) for each in trainable_parameters(model, RSFTSettings(layer=1)))
    export_state(editor.state, tmp_path / "adapter", base="tiny")
    if adapter == "PEFT" and not PEFT_READS_EXPERTS:
        return
    served = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    assert not torch.allclose(served, logits(small(name, len(tiny_tokenizer))), atol=1e-3)
    torch.testing.assert_close(served, edited, rtol=0, atol=1e-4)


def test_the_tables_of_the_page_are_what_is_found_and_no_more() -> None:
    """Made by ``python -m tests.support.families_page``."""
    tables = [table.splitlines()[2:] for table in re.findall(r"^\| family .*?(?=\n\n)", PAGE, re.S | re.M)]
    assert tables == [edited_rows(), refused_rows()]
