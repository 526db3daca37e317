"""LoRA SFT, CoRSA and F-Learning through the protocols."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import run_protocol, temporal_stream
from tests.fixtures.protocols import FailsOnce
from tests.support.small_plans import BORN, FRANCE, PLANS
from tests.trl_ext.methods.conftest import METHODS, QUICK, SETTINGS, facts_of, is_as
from trl_ext.methods import LoraMethod, f_learning, lora_sft


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("protocol", list(PLANS))
def test_each_method_through_each_protocol(
    name: str, protocol: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before, plan = facts_of(taught_llama), PLANS[protocol]()
    result = run_protocol(METHODS[name](), plan, taught_llama, tiny_tokenizer, **QUICK)
    assert is_as(taught_llama, before)
    for number, one in enumerate(plan.sets, start=1):
        then, now = result.at(0, one.name), result.at(number, one.name)
        gained = [b.edit.log_prob_new - a.edit.log_prob_new for a, b in zip(then.records, now.records, strict=True)]
        assert all(gain > 0 for gain in gained)


@pytest.mark.parametrize("name", ["corsa", "f-learning"])
def test_a_stopped_run_goes_on_where_it_was(
    name: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before, plan = facts_of(taught_llama), temporal_stream([[FRANCE], [BORN]])
    whole = run_protocol(METHODS[name](), plan, taught_llama, tiny_tokenizer, **QUICK)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_protocol(FailsOnce(METHODS[name](), 2), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert is_as(taught_llama, before)
    going_on = FailsOnce(METHODS[name](), None)
    result = run_protocol(going_on, plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert [list(requests) for requests in going_on.made] == [[BORN]]
    assert result.evaluations == whole.evaluations
    assert is_as(taught_llama, before)


def test_a_training_that_breaks_off_leaves_the_model_as_it_was(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = facts_of(taught_llama)
    with torch.no_grad():
        damaged = copy.deepcopy(taught_llama)
        damaged.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    nan = facts_of(damaged)
    with pytest.raises(FloatingPointError):
        run_protocol(METHODS["corsa"](), temporal_stream([[FRANCE]]), damaged, tiny_tokenizer, **QUICK)
    assert facts_of(damaged)["modules"] == nan["modules"]
    assert facts_of(damaged)["own"] == nan["own"]
    assert facts_of(damaged)["flags"] == nan["flags"]
    assert is_as(taught_llama, before)


def test_the_description_tells_methods_apart() -> None:
    described = [make().describe() for make in METHODS.values()]
    assert all(one != other for i, one in enumerate(described) for other in described[:i])
    assert f_learning(SETTINGS, forgetting_rate=0.5).describe() != f_learning(SETTINGS).describe()
    assert LoraMethod("LoRA SFT", {}, SETTINGS).describe() != lora_sft(SETTINGS).describe()
    assert lora_sft().describe() == lora_sft().describe()
