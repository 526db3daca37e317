"""An edit of routed experts as an adapter: what PEFT makes of it is the edited model; and back into a state."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from corsa_plugins.adapters import (
    AdapterError,
    AdapterForm,
    Asked,
    adopt_adapter,
    adopting_editor,
    export_state,
    read_adapter,
)
from corsa_plugins.adapters.compression import KeyMoment, compress
from corsa_plugins.adapters.export import state_adapter
from corsa_plugins.adapters.low_rank import LowRank, joined
from corsa_plugins.adapters.routed import RoutedLowRank, compress_experts
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.model.loading import put_adapters
from tests.fixtures.alphaedit import Bench
from tests.fixtures.experts import SETTINGS, made
from tests.support.families import REQUESTS
from tests.support.mixtures import COUNT, PEFT_READS_EXPERTS

pytestmark = pytest.mark.skipif(not PEFT_READS_EXPERTS, reason="PEFT before 0.19 swaps the factors")

PARAMETER = "model.layers.1.mlp.experts.down_proj"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model.eval()(input_ids=torch.arange(3, 23)[None], use_cache=False).logits
    return result


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_base_and_adapter_are_the_edited_model(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    bench = made(tiny_tokenizer, name)
    base = bench.copy()
    editor, plain = bench.editor(), logits(bench.model)
    for day, requests in (("monday", REQUESTS[:2]), ("tuesday", REQUESTS[2:])):
        editor.edit(requests, name=day, answers=False)
    both = logits(bench.model)
    exported = export_state(editor.state, tmp_path / "both", base="tiny", asked=Asked(base.model, base.tokenizer))
    assert list(exported.modules) == [PARAMETER]
    editor.revert("tuesday")
    monday = logits(bench.model)
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["target_parameters"]) == ([], [PARAMETER])
    served = PeftModel.from_pretrained(base.copy().model, tmp_path / "both")
    torch.testing.assert_close(logits(served), both, rtol=0, atol=2e-6 * float(both.abs().max()))
    assert not torch.allclose(plain, both, atol=0.05)

    export_state(editor.state, tmp_path / "monday", batches=["monday"], base="tiny")
    served = put_adapters(base.copy().model, {"both": tmp_path / "both", "monday": tmp_path / "monday"})
    for adapter_name, wanted in (("monday", monday), ("both", both)):
        served.set_adapter(adapter_name)
        torch.testing.assert_close(logits(served), wanted, rtol=0, atol=2e-6 * float(both.abs().max()))

    adapter = read_adapter(tmp_path / "both")
    back = adopting_editor(base.model, base.tokenizer, adapter)
    adopt_adapter(back, adapter, any_base=True)
    torch.testing.assert_close(logits(base.model), both, rtol=0, atol=2e-6 * float(both.abs().max()))
    back.revert("1")
    assert torch.equal(logits(base.model), plain)


def test_what_is_projected_expert_by_expert_is_exported_as_it_is_in_the_weights(experts_bench: Bench) -> None:
    rule = RestraintSettings("principal_directions", energy=0.5, strength=1.0)
    base, bench = experts_bench.copy(), replace(experts_bench, settings=replace(SETTINGS, restraint=rule))
    editor = bench.editor()
    editor.edit(REQUESTS[:2], answers=False)
    editor.edit(REQUESTS[2:], answers=False)
    adapter, _ = state_adapter(editor.state, base="tiny")
    update = adapter.updates[PARAMETER]
    assert isinstance(update, RoutedLowRank)
    plain = sum(part.left @ part.right.T for part in editor.state.updates(1))
    experts, originals = (b.model.model.layers[1].mlp.experts.down_proj.detach() for b in (bench, base))
    for expert, unrestrained in enumerate(torch.as_tensor(plain).chunk(COUNT, 1)):
        change = experts[expert] - originals[expert]
        torch.testing.assert_close(
            update.parts[expert].delta(), change, rtol=0, atol=1e-6 * float(originals.abs().max())
        )
        assert not unrestrained.any() or (change - unrestrained).norm() > 0.01 * change.norm()


def test_an_expert_has_the_ranks_of_the_edits_that_take_it(experts_bench: Bench, tmp_path: Path) -> None:
    editor = experts_bench.editor()
    editor.edit(REQUESTS, answers=False)
    exported = export_state(editor.state, tmp_path / "out", base="tiny")
    update = read_adapter(tmp_path / "out").updates[PARAMETER]
    assert isinstance(update, RoutedLowRank)
    whole = joined(editor.state.updates(1)).delta()
    torch.testing.assert_close(update.side_by_side().delta(), whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    keys = editor.state.batches[0].layers[1].keys.reshape(COUNT, -1, len(REQUESTS))
    taking = [int(each.any(0).sum()) for each in keys]
    assert [part.rank for part in update.parts] == taking
    assert exported.rank == max(taking)
    assert min(taking) < len(REQUESTS)


def test_fewer_ranks_are_the_best_of_each_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, keys = (torch.randn(size, 5, generator=generator) for size in (16, 4 * 8, 4 * 8))
    right[:8] = 0
    moment = KeyMoment(torch.stack([torch.diag(torch.rand(8, generator=generator)) for _ in range(4)]).double(), keys)
    found = compress_experts(LowRank(left, right), 4, 2, moment)
    assert ([part.rank for part in found.update.parts], found.needed) == ([0, 2, 2, 2], 5)
    losses = []
    for expert in range(1, 4):
        own = slice(8 * expert, 8 * expert + 8)
        alone = compress(LowRank(left, right[own]), 2, KeyMoment(moment.preserved[expert], keys[own]))  # type: ignore[index]
        torch.testing.assert_close(found.update.parts[expert].delta(), alone.update.delta())
        losses.append(alone.loss)
    assert found.loss == max(losses)


def test_compressed_it_says_what_that_costs(experts_bench: Bench, tmp_path: Path) -> None:
    base, editor = experts_bench.copy(), experts_bench.editor()
    editor.edit(REQUESTS, answers=False)
    form = AdapterForm(rank=1, statistics=experts_bench.statistics)
    exported = export_state(
        editor.state, tmp_path / "out", form=form, asked=Asked(base.model, base.tokenizer), base="t"
    )
    assert exported.rank == 1
    assert exported.modules[PARAMETER].loss > 0
    assert exported.efficacy is not None


def test_other_changes_of_experts_are_refused(experts_bench: Bench, tmp_path: Path) -> None:
    for name, targets, said in (
        ("up", ["mlp.experts.gate_up_proj"], r"changes .*gate_up_proj.*: of experts a state knows the down maps"),
        ("both", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "changes several parameters of one module"),
    ):
        config = LoraConfig(r=1, target_modules=[], target_parameters=targets, init_lora_weights=False)
        get_peft_model(experts_bench.copy().model, config).save_pretrained(tmp_path / name)
        with pytest.raises(AdapterError, match=said):
            adopting_editor(experts_bench.model, experts_bench.tokenizer, read_adapter(tmp_path / name))
