"""The difference of two models as an adapter: exact where the rank suffices, else with the loss that is told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.adapters import AdapterError, AdapterForm, Asked, export_difference, read_adapter
from corsa_plugins.adapters.efficacy import share_answered
from corsa_plugins.alphaedit.lookup.keys import request_keys
from corsa_plugins.errors import SettingError
from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.fixtures.adapters import Edited
from tests.fixtures.alphaedit import REQUESTS, Bench, gpt2
from tests.oracles import adapters as oracle
from tests.support.serving import assert_vllm_loads


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(torch.arange(3, 20)[None]).logits
    return result


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("merged", [False, True])
def test_of_rsft_and_of_a_merge_it_is_exact(merged: bool, llama_bench: Bench, tmp_path: Path) -> None:
    base = llama_bench.copy()
    rsft(llama_bench.model, llama_bench.tokenizer, REQUESTS[:2], RSFTSettings(layer=1, epochs=2))
    if merged:
        with torch.no_grad():
            for name, parameter in llama_bench.model.named_parameters():
                origin = base.model.get_parameter(name)
                parameter.copy_(merge_deltas(origin, [EditedTensor(parameter, 0.8, 0.2)]))
    before = base.weights()
    asked = Asked(base.model, base.tokenizer)
    exported = export_difference(llama_bench.model, asked, tmp_path / "out", called="a/base", requests=REQUESTS)
    assert base.holds(before)
    assert sorted(name.rpartition(".")[2] for name in exported.modules) == ["down_proj", "gate_proj", "up_proj"]
    assert {module.loss for module in exported.modules.values()} == {0.0}
    assert exported.efficacy is None
    assert_vllm_loads(tmp_path / "out", 32)
    plain = logits(base.model)
    served = logits(PeftModel.from_pretrained(base.model, tmp_path / "out"))
    assert far(logits(llama_bench.model), served) < 1e-5
    assert far(logits(llama_bench.model), plain) > 1e-3


def test_of_an_alphaedit_model_it_has_the_rank_of_its_edits(edited: Edited, tmp_path: Path) -> None:
    exported = export_difference(edited.model, edited.asked, tmp_path / "out")
    assert exported.rank == 5
    (name,) = exported.modules
    assert name == edited.state.modules[0]


def test_compressed_it_is_best_in_the_norm_of_the_keys(llama_bench: Bench, tmp_path: Path) -> None:
    base = llama_bench.copy()
    rsft(llama_bench.model, llama_bench.tokenizer, REQUESTS[:2], RSFTSettings(layer=1, epochs=2))
    asked = Asked(base.model, base.tokenizer)
    form = AdapterForm(rank=2, statistics=base.statistics)
    exported = export_difference(llama_bench.model, asked, tmp_path / "out", form=form, called="b", requests=REQUESTS)
    adapter = read_adapter(tmp_path / "out")
    down = "model.layers.1.mlp.down_proj"
    keys = request_keys(base.model, base.tokenizer, REQUESTS, [1], ["{}"])[1].double().numpy()
    moments = {down: oracle.moment(base.statistics.moment(1).double().numpy(), keys)}
    for name, update in adapter.updates.items():
        delta = (
            llama_bench.model.get_submodule(name).weight - base.model.get_submodule(name).weight
        ).detach().double().numpy()  # fmt: skip
        C = moments.get(name, np.eye(delta.shape[1]))
        literal = oracle.best(delta, C, 2)
        np.testing.assert_allclose(update.delta().numpy(), literal, atol=1e-4 * np.abs(delta).max())
        assert exported.modules[name].loss == pytest.approx(oracle.loss(delta, literal, C), rel=1e-2)
    assert exported.efficacy is not None
    assert exported.efficacy[0] == share_answered(Asked(llama_bench.model, base.tokenizer), REQUESTS)


def test_a_limit_names_what_is_needed(llama_bench: Bench, tmp_path: Path) -> None:
    base = llama_bench.copy()
    rsft(llama_bench.model, llama_bench.tokenizer, REQUESTS[:1], RSFTSettings(layer=1, epochs=1))
    asked = Asked(base.model, base.tokenizer)
    form = AdapterForm(max_rank=16)
    with pytest.raises(SettingError, match=r"\(what .*proj needs to be exact\), and at most 16 .*--max-lora-rank 32"):
        export_difference(llama_bench.model, asked, tmp_path / "out", form=form, called="b")
    assert list(tmp_path.iterdir()) == []


def test_what_no_adapter_can_hold_is_refused_by_name(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    asked = Asked(tiny_llama, tiny_tokenizer)
    other: Any = copy.deepcopy(tiny_llama)
    with pytest.raises(AdapterError, match="the two models are equal"):
        export_difference(other, asked, tmp_path / "out", called="b")
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        other = copy.deepcopy(tiny_llama)
        with torch.no_grad():
            other.get_parameter(name).mul_(2)
        with pytest.raises(AdapterError, match=f"{name} differs, and is no linear map's weight"):
            export_difference(other, asked, tmp_path / "out", called="b")
    one: Any = gpt2(len(tiny_tokenizer)).float()
    with pytest.raises(AdapterError, match="two architectures"):
        export_difference(one, asked, tmp_path / "out", called="b")
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.transformer.h[0].mlp.c_proj.bias.add_(1)
    with pytest.raises(AdapterError, match=r"c_proj\.bias differs"):
        export_difference(two, Asked(one, tiny_tokenizer), tmp_path / "out", called="b")
    assert list(tmp_path.iterdir()) == []


def test_transposed_weights_are_told(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base: Any = gpt2(len(tiny_tokenizer)).float()
    edited = copy.deepcopy(base)
    with torch.no_grad():
        edited.transformer.h[1].mlp.c_fc.weight.add_(torch.randn(32, 1) @ torch.randn(1, 48))
    exported = export_difference(edited, Asked(base, tiny_tokenizer), tmp_path / "out", called="b")
    assert (exported.rank, read_adapter(tmp_path / "out").transposed) == (1, True)
    assert far(logits(edited), logits(PeftModel.from_pretrained(base, tmp_path / "out"))) < 1e-5
