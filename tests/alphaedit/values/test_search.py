"""The search for value vectors: what it says of them, and that the model is left as it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.values.search import ValueSettings, find_values
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import score_targets
from tests.oracles import values as oracle
from tests.support.families import CONTEXTS, REQUESTS
from tests.support.values import CLAMPED, KNOWN, TAUGHT


def test_the_probability_is_the_models_with_the_vector_in_place(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    searched = find_values(taught_llama, tiny_tokenizer, KNOWN, 0, ["{}"], replace(TAUGHT, stop_loss=0.1))
    for number, request in enumerate(KNOWN):
        position = oracle.last_token(tiny_tokenizer, request.prompt.split(str(request.subject))[0], request.subject)

        def put(module: Any, args: Any, output: Any, position: int = position, number: int = number) -> None:
            output[:, position] = searched.vectors[:, number]

        hook = taught_llama.model.layers[0].register_forward_hook(put)
        (score,) = score_targets(taught_llama, tiny_tokenizer, [(request.prompt, request.target_new)])
        hook.remove()
        assert float(searched.probability[number].log()) == pytest.approx(score.log_prob, rel=1e-4, abs=1e-4)
    assert searched.reached.tolist() == (searched.probability >= 0.5).tolist()
    assert searched.reached.any()


def test_a_target_out_of_reach_is_reported(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="corsa_plugins"):
        searched = find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, ValueSettings(steps=2, lr=1e-4))
    assert not searched.reached.any()
    assert (searched.probability < 0.5).all()
    for request in REQUESTS:
        assert request.name(0) in caplog.text


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    modules = {
        name: (module.training, "forward" in vars(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    asks = {name: (parameter.requires_grad, parameter.grad is None) for name, parameter in model.named_parameters()}
    return modules | asks


@pytest.mark.parametrize("reuse", [True, False])
def test_the_model_is_left_as_it_was_whatever_is_raised(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    reuse: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama.train()
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = snapshot(model)
    settings = replace(CLAMPED, reuse_prefix=reuse)
    find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    assert snapshot(model) == before
    calls = 0

    def interrupt(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    hook = model.model.layers[1].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_values(model, tiny_tokenizer, REQUESTS, 0, CONTEXTS, settings)
    hook.remove()
    assert snapshot(model) == before
    assert torch.is_grad_enabled()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_inside_no_grad_or_inference_mode_it_works_too(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    wanted = find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED).vectors
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, CLAMPED).vectors, wanted)


def test_bad_requests_are_refused_before_anything_runs(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def never(module: Any, args: Any) -> None:
        raise AssertionError

    tiny_llama.model.layers[0].register_forward_pre_hook(never)
    bad: Sequence[EditRequest] = [
        REQUESTS[0],
        EditRequest(prompt="The capital of Spain is", target_new="Rome", case_id="spain"),
        EditRequest.model_construct(prompt="Spain is", target_new=" ", subject="Spain", case_id="empty"),
    ]
    with pytest.raises(RequestError, match=r"(?s)2 edit requests.*'spain'.*no subject.*'empty'.*target"):
        find_values(tiny_llama, tiny_tokenizer, bad, 0, CONTEXTS)
    with pytest.raises(RequestError, match="give at least one"):
        find_values(tiny_llama, tiny_tokenizer, [], 0, CONTEXTS)
    with pytest.raises(SettingError, match="layer is 2"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 2, CONTEXTS)
    with pytest.raises(SettingError, match="layer is 7"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, CONTEXTS, ValueSettings(loss_layer=7))
    with pytest.raises(SettingError, match="first one"):
        find_values(tiny_llama, tiny_tokenizer, REQUESTS, 0, ["A. {}"])
