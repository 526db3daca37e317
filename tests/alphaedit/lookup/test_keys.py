"""Keys: what a hand-made hook sees, averaged as the method says, for every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from tests.oracles import values as oracle
from tests.support.families import CONTEXTS, NAMES, REQUESTS, family


def by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, layer: int) -> Tensor:
    down = find_architecture(model).ffn(layer).down.module
    keys = [oracle.key(model, tokenizer, request.prompt, request.subject, CONTEXTS, down) for request in REQUESTS]
    return torch.stack(keys, dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_outputs_are_what_a_hook_sees(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family(name, len(tiny_tokenizer))
    keys = request_keys(model, tiny_tokenizer, REQUESTS, [2, 0], CONTEXTS, batch_size=4)
    assert list(keys) == [2, 0]
    for layer, found in keys.items():
        assert torch.allclose(found, by_hand(model, tiny_tokenizer, layer), rtol=1e-4, atol=1e-5)
    seen: list[Tensor] = []
    find_architecture(model).block(1).module.register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    outputs = request_outputs(model, tiny_tokenizer, REQUESTS, 1)
    for index, request in enumerate(REQUESTS):
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([tiny_tokenizer(request.prompt).input_ids]))
        position = oracle.last_token(tiny_tokenizer, request.prompt.split(str(request.subject))[0], request.subject)
        assert torch.allclose(outputs[:, index], seen[0][0, position], rtol=1e-4, atol=1e-5)


def test_a_key_is_the_literal_one_in_float64(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = family("gpt2", len(tiny_tokenizer)).double()
    keys = request_keys(model, tiny_tokenizer, REQUESTS, [1], CONTEXTS)[1]
    assert keys.dtype == torch.float64
    wanted = by_hand(model, tiny_tokenizer, 1)
    assert (keys - wanted).norm() < 1e-12 * wanted.norm()


def test_without_contexts_a_key_is_the_bare_prompts(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [0], ["{}"])[0]
    twice = request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [0], ["{}", CONTEXTS[1]])[0]
    thrice = request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [0], ["{}", CONTEXTS[1], CONTEXTS[1]])[0]
    assert torch.allclose(twice, thrice, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(twice, alone, rtol=1e-2)


def test_padding_batches_and_order_make_no_difference(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    keys = request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [1], CONTEXTS)[1]
    tiny_tokenizer.padding_side = "left"
    tiny_tokenizer.pad_token = None
    other = request_keys(tiny_llama, tiny_tokenizer, REQUESTS[::-1], [1], CONTEXTS, batch_size=2)[1]
    assert torch.allclose(keys, other.flip(1), rtol=1e-4, atol=1e-6)
    alone = request_keys(tiny_llama, tiny_tokenizer, REQUESTS[1:2], [1], CONTEXTS, batch_size=1)[1]
    assert torch.allclose(keys[:, 1:2], alone, rtol=1e-4, atol=1e-6)


def test_blocks_above_are_not_run_and_everything_is_left_as_it_was(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    ran: list[int] = []
    for index, layer in enumerate(tiny_llama.model.layers):
        layer.mlp.register_forward_pre_hook(lambda module, args, index=index: ran.append(index))
    tiny_llama.train()
    before = {name: sorted(vars(module)) for name, module in tiny_llama.named_modules()}
    request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [0], CONTEXTS)
    assert set(ran) == {0}
    assert tiny_llama.training
    assert all(parameter.requires_grad for parameter in tiny_llama.parameters())
    assert before == {name: sorted(vars(module)) for name, module in tiny_llama.named_modules()}
    assert not tiny_llama.model.layers[0].mlp.down_proj._forward_pre_hooks


def test_half_precision_gives_float32(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    wanted = request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [1], CONTEXTS)[1]
    found = request_keys(tiny_llama.bfloat16(), tiny_tokenizer, REQUESTS, [1], CONTEXTS)[1]
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_what_cannot_be_looked_up_is_listed(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    bad = [
        EditRequest(prompt="The capital of Spain is", target_new="Rome", case_id="no subject"),
        REQUESTS[0],
        EditRequest(prompt="x " * 200 + "Spain is", target_new="Rome", subject="Spain", case_id="long"),
        EditRequest.model_construct(prompt="Spain is", target_new="Rome", subject="Italy", case_id="absent"),
    ]
    with pytest.raises(RequestError) as error:
        request_keys(tiny_llama, tiny_tokenizer, bad, [0], CONTEXTS)
    message = str(error.value)
    for part in ("3 edit requests", "'no subject'", "no subject, and", "'long'", "reads 128", "'absent'", "'Italy'"):
        assert part in message
    assert "'france'" not in message
    with pytest.raises(RequestError, match="give at least one"):
        request_keys(tiny_llama, tiny_tokenizer, [], [0], CONTEXTS)


def test_a_vocabulary_too_large_for_the_model_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="the model embeds 50"):
        request_keys(family("llama2", 50), tiny_tokenizer, REQUESTS, [0], CONTEXTS)


def test_settings_out_of_range_are_named(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(SettingError, match="2 blocks, numbered"):
        request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [2], CONTEXTS)
    with pytest.raises(SettingError, match="layers is empty"):
        request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [], CONTEXTS)
    with pytest.raises(SettingError, match="batch_size is 0"):
        request_outputs(tiny_llama, tiny_tokenizer, REQUESTS, 0, batch_size=0)
    with pytest.raises(SettingError, match="first one"):
        request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [0], ["A. {}"])


def test_parts_named_by_hand_are_used(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    found = find_architecture(tiny_llama)
    swapped = replace(found, blocks=found.blocks[:1])
    assert list(request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [0], ["{}"], architecture=swapped)) == [0]
    with pytest.raises(SettingError, match="1 blocks"):
        request_keys(tiny_llama, tiny_tokenizer, REQUESTS, [1], ["{}"], architecture=swapped)
