"""Part of a model run by its own forward gives what the whole of it would, and nothing stays on the model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, PreTrainedModel

from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import hooked
from corsa_plugins.model.running import (
    adds_output_as_it_is,
    hidden_states,
    logits_at,
    stopped_after,
    target_logits,
    with_hidden_states,
)
from corsa_plugins.model.tokenization import JoinedIds
from tests.conftest import llama

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=2, n_positions=64))


def neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPTNeoXConfig(**SMALL))


def gemma2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0)
    return AutoModelForCausalLM.from_config(config)


MODELS = [lambda: llama(50), gpt2, neox, gemma2]
each_model = pytest.mark.parametrize("build", MODELS, ids=["llama", "gpt2", "neox", "gemma2"])

ROWS = [JoinedIds([3, 4, 5], [6, 7]), JoinedIds([8], [9, 10, 11, 12]), JoinedIds([3, 4, 5, 6, 7, 8], [9])]


@each_model
def test_targets_are_predicted_as_in_a_row_of_their_own(build):
    model = build().eval().double()
    with torch.no_grad():
        for row, logits in zip(ROWS, target_logits(model, ROWS), strict=True):
            whole = model(torch.tensor([row.prompt_ids + row.target_ids])).logits[0]
            start = len(row.prompt_ids) - 1
            torch.testing.assert_close(logits, whole[start : start + len(row.target_ids)])


def test_targets_can_be_predicted_through_an_adapter_and_with_gradients():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(50), config).eval()
    (logits,) = target_logits(model, ROWS[:1])
    torch.testing.assert_close(logits, model(torch.tensor([[3, 4, 5, 6, 7]])).logits[0, 2:4])
    assert all(parameter.grad_fn is None for parameter in model.parameters())
    assert logits.requires_grad


LONG = [JoinedIds([*range(3, 43)], [6, 7]), JoinedIds([3, 9, *range(10, 48)], [5, 4])]


@each_model
def test_rows_of_two_lengths_run_apart_where_that_saves_more_than_a_pass(build):
    model = build().eval().double()
    shapes = []

    def note(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    with torch.no_grad(), hooked(model, note, before=True, with_kwargs=True):
        mixed = [LONG[0], *ROWS, LONG[1]]
        found = target_logits(model, mixed)
        assert shapes == [(3, 6), (2, 41)], "no last token, and short rows without the padding of long ones"
        for row, logits in zip(mixed, found, strict=True):
            torch.testing.assert_close(logits, target_logits(model, [row])[0])
        shapes.clear()
        target_logits(model, ROWS)
        target_logits(model, [LONG[0], ROWS[0]])
        assert shapes == [(3, 6), (1, 4), (1, 41)]
        model.hf_device_map = {"": "cpu"}  # such a model may fetch its weights for every pass
        shapes.clear()
        target_logits(model, mixed)
        assert shapes == [(5, 41)]


def test_half_precision_is_widened_and_double_kept():
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        (logits,) = target_logits(llama(50).to(dtype).eval(), ROWS[:1])
        assert logits.dtype == wanted


@each_model
def test_logits_are_those_of_the_positions(build):
    model = build().eval().double()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    rows, positions = torch.tensor([0, 1, 0]), torch.tensor([3, 2, 0])
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(
            logits_at(find_architecture(model), ids, mask, rows, positions), whole[rows, positions]
        )
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, whole, rtol=0, atol=0)


@each_model
@pytest.mark.parametrize("layer", [0, 1])
def test_a_stopped_model_says_what_the_head_makes_of_the_block(build, layer):
    model = build().eval().double()
    parts, ids = find_architecture(model), torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        outputs = []
        with hooked(parts.block(layer).module, lambda _, args, output: outputs.append(hidden_states(output))):
            whole = model(ids)
        with stopped_after(parts, layer):
            stopped = model(ids).logits
        expected = parts.head.module(parts.norm.module(outputs[0]))
        if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
            expected = cap * torch.tanh(expected / cap)
        torch.testing.assert_close(stopped, expected)
        torch.testing.assert_close(model(ids).logits, whole.logits, rtol=0, atol=0)


def test_whether_an_ffns_output_is_added_as_it_is_is_tried():
    assert adds_output_as_it_is(find_architecture(llama(50)), 0)
    assert adds_output_as_it_is(find_architecture(gpt2()), 1)
    assert not adds_output_as_it_is(find_architecture(gemma2()), 1)  # it has a norm behind the FFN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hides_no_sum_and_no_norm(dtype):
    """Pretrained models carry hidden states of thousands, beside which half precision rounds an FFN's output."""
    for model, adds in ((llama(50), True), (gemma2(), False)):
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(2e4)
        model.to(dtype)
        assert adds_output_as_it_is(find_architecture(model), 0) is adds


def test_hidden_states_are_taken_from_a_blocks_output_and_put_into_it():
    hidden, other = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert hidden_states(hidden) is hidden
    assert hidden_states((hidden, "weights")) is hidden
    assert with_hidden_states(hidden, other) is other
    assert with_hidden_states((hidden, "weights"), other) == (other, None)
