"""Templates of the model's own: always the same, always fit to be filled in."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.lookup.contexts import LEADS, check_contexts, context_weights, generate_contexts
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.tokenization import encode_prompt
from tests.conftest import byte_level_tokenizer, llama


def test_templates_begin_as_they_should_and_have_one_place(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    contexts = generate_contexts(taught_llama, tiny_tokenizer)
    assert contexts[0] == "{}"
    assert len(contexts) == 6
    for context, lead in zip(contexts[1:], LEADS, strict=True):
        assert context.startswith(lead)
        assert context.endswith(". {}")
        assert context.count("{") == context.count("}") == 1
        assert "\n" not in context
        assert len(context) > len(lead) + 4
    check_contexts(contexts)


def test_the_same_every_time_and_others_with_another_seed(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = generate_contexts(taught_llama, tiny_tokenizer, seed=3)
    torch.manual_seed(99)
    tiny_tokenizer.padding_side = "left"
    before = torch.random.get_rng_state()
    assert generate_contexts(taught_llama, tiny_tokenizer, seed=3) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generate_contexts(taught_llama, tiny_tokenizer, seed=4) != first


def test_the_length_counts_all_tokens(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    lead = len(encode_prompt(tiny_tokenizer, "The"))
    assert generate_contexts(taught_llama, tiny_tokenizer, n=1, length=lead)[1] == "The. {}"
    assert generate_contexts(taught_llama, tiny_tokenizer, n=1, length=lead + 1)[1] != "The. {}"
    assert generate_contexts(taught_llama, tiny_tokenizer, n=0) == ("{}",)
    assert len(set(generate_contexts(taught_llama, tiny_tokenizer, n=12, length=14))) == 13


def test_a_model_that_ends_at_once_or_writes_braces_gives_templates_all_the_same() -> None:
    tokenizer = byte_level_tokenizer()
    model = llama(len(tokenizer))
    wanted = {tokenizer.eos_token_id: 9.0, tokenizer.convert_tokens_to_ids("{"): 8.0}
    wanted[tokenizer.convert_tokens_to_ids("}")] = 7.0
    bias = torch.full((len(tokenizer),), -9.0)
    for token, value in wanted.items():
        bias[token] = value
    model.lm_head.bias = torch.nn.Parameter(bias * 100)
    contexts = generate_contexts(model, tokenizer)
    assert all(context.count("{") == context.count("}") == 1 for context in contexts)
    assert [context.split()[0].rstrip(".") for context in contexts[1:]] == list(LEADS)
    check_contexts(contexts)


def test_the_model_is_left_as_it_was(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    taught_llama.train()
    taught_llama.model.layers[1].eval()
    generate_contexts(taught_llama, tiny_tokenizer)
    assert taught_llama.training
    assert not taught_llama.model.layers[1].training
    assert all(parameter.requires_grad for parameter in taught_llama.parameters())
    assert not taught_llama.lm_head._forward_pre_hooks


def test_a_damaged_model_is_refused(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with torch.no_grad():
        taught_llama.model.norm.weight.fill_(torch.nan)
    with pytest.raises(CorsaError, match="logits are NaN"):
        generate_contexts(taught_llama, tiny_tokenizer)


def test_weights_are_the_means_of_the_kinds() -> None:
    assert context_weights(["{}"]).tolist() == [1]
    assert context_weights(["{}", "a. {}"]).tolist() == [0.5, 0.5]
    assert context_weights(["{}", "a. {}", "b. {}", "c. {}", "d. {}"]).tolist() == [0.5, *[0.125] * 4]


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        ([], "first one"),
        (["A. {}", "{}"], "first one"),
        ("{}", "first one"),
        (["{}", "A."], "'A.' must have"),
        (["{}", "{} {}"], "once"),
        (["{}", 3], "3 must"),
    ],
)
def test_what_is_no_template_is_refused(contexts: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_contexts(contexts)


def test_settings_out_of_range_are_named(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(SettingError, match="n is -1"):
        generate_contexts(tiny_llama, tiny_tokenizer, n=-1)
    with pytest.raises(SettingError, match="length is 0"):
        generate_contexts(tiny_llama, tiny_tokenizer, length=0)
