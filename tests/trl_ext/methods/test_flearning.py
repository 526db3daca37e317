"""F-Learning: what is forgotten is what learning the old answers changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import run_protocol, temporal_stream
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from tests.support.small_plans import FRANCE, ITALY
from tests.trl_ext.conftest import lora
from tests.trl_ext.methods.conftest import QUICK, SETTINGS, facts_of, is_as
from trl_ext.methods import AdapterSession, AdapterSettings, FLearningMethod, f_learning, lora_sft


def merged(peft: PeftModel) -> dict[str, Tensor]:
    """The weights with the adapter in, by PEFT's own arithmetic."""
    return dict(copy.deepcopy(peft).merge_and_unload().state_dict())


def swapped(request: EditRequest) -> EditRequest:
    data = {**dict(request), "target_new": request.target_old, "target_old": request.target_new}
    return EditRequest(**data)


def gpt2(vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def weights_below(session: Any) -> dict[str, Tensor]:
    """The base weights without the adapter, named as in a bare model."""
    found = {}
    for name, tensor in session.base.state_dict().items():
        if "lora_" not in name:
            found[name.replace(".base_layer", "")] = tensor.clone()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_forgotten_is_what_learning_the_old_answers_changes(
    family: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """theta' = theta - lambda (FT(theta, old) - theta), in both of two updates; then the adapter alone learns."""
    model: Any = taught_llama if family == "llama" else gpt2(len(tiny_tokenizer))
    before, rate = facts_of(model), 0.2
    # GPT-2 stores its weights the other way round
    settings = AdapterSettings(SETTINGS.training, lora(fan_in_fan_out=family == "gpt2"))
    session: Any = f_learning(settings, forgetting_rate=rate).start(model, tiny_tokenizer, seed=0)
    for number, request in enumerate((FRANCE, ITALY)):
        clone: AdapterSession = copy.deepcopy(session)
        theta = merged(clone.peft) if clone.peft else dict(clone.base.state_dict())
        theta = {name: tensor.clone() for name, tensor in theta.items()}
        clone.peft = clone.train([swapped(request)], tmp_path / f"old-{number}")
        tuned = merged(clone.peft)
        bare = weights_below(session)
        (folder := tmp_path / str(number)).mkdir()
        session.update([request], folder)
        changed = 0
        for name, weight in weights_below(session).items():
            expected = bare[name] - rate * (tuned[name] - theta[name])
            torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)
            changed += not torch.equal(weight, bare[name])
        assert changed >= 4
    session.close()
    assert is_as(model, before)


def test_without_forgetting_it_is_lora_sft(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """lambda 0 subtracts nothing, and so does a training on old answers that stands still."""
    plan = temporal_stream([[FRANCE]])
    still = f_learning(SETTINGS, forgetting_rate=0.5, forgetting={"learning_rate": 1e-30})
    methods = (lora_sft(SETTINGS), f_learning(SETTINGS, forgetting_rate=0), still, f_learning(SETTINGS))
    results = [run_protocol(method, plan, taught_llama, tiny_tokenizer, **QUICK) for method in methods]
    sft, none, unmoved, some = (result.at(1, "round 1").records for result in results)
    assert sft == none == unmoved
    assert sft != some


def test_a_quantised_model_is_refused_by_f_learning(tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any) -> None:
    weight = tiny_llama.model.layers[0].mlp.down_proj.weight
    packed = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    tiny_llama.model.layers[0].mlp.down_proj.weight = packed
    with pytest.raises(SettingError, match=r"down_proj\.weight is stored as torch\.int8: F-Learning subtracts"):
        FLearningMethod(SETTINGS).start(tiny_llama, tiny_tokenizer, seed=0)
