"""The completion head against the model's own logits, over the ways families treat their logits."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from trl.trainer.utils import add_fused_lm_head

from trl_ext import head as head_module
from trl_ext.head import add_completion_head, has_completion_head, remove_completion_head

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SMALL))
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    if family == "gemma2-softcap":
        return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=3.0))
    if family == "cohere-scale":
        return CohereForCausalLM(
            CohereConfig(**SMALL, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        )
    assert family == "granite-scaling"
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))


FAMILIES = ["llama", "gpt2", "gemma2-softcap", "cohere-scale", "granite-scaling"]


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 97, (4, 11), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    for row in range(4):
        labels[row, : 6 + row] = -100
    labels[1, -1] = -100  # padding behind the completion
    return ids, labels


@pytest.mark.parametrize("pieces", [False, True], ids=["at-once", "in-pieces"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_models_own_logits(family: str, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pieces:
        monkeypatch.setattr(head_module, "_LOGITS_AT_ONCE", 97 * 3)
    model = build(family).eval()
    ids, labels = a_batch()
    own = torch.log_softmax(model(input_ids=ids).logits[:, :-1].float(), -1)
    mask = labels[:, 1:] != -100
    expected = own.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask
    (expected_grad,) = torch.autograd.grad(expected.sum(), model.get_input_embeddings().weight)

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    add_completion_head(model)
    assert has_completion_head(model)
    found = model(input_ids=ids, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(found.log_probs.sum(), model.get_input_embeddings().weight)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.entropy, -(own.exp() * own).sum(-1) * mask, rtol=1e-4, atol=1e-5)
    squares = torch.logsumexp(2 * own, -1).masked_fill(~mask, 0)
    torch.testing.assert_close(found.log_sum_sq_probs, squares, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.is_top1, (own.argmax(-1) == ids[:, 1:]) & mask)


def test_only_completion_positions_reach_the_head() -> None:
    model = build("llama")
    add_fused_lm_head(model)
    add_completion_head(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[:-1].numel()))
    ids, labels = a_batch()
    model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert seen == [int((labels[:, 1:] != -100).sum())]


def test_a_call_without_labels_is_the_models_own() -> None:
    model = build("llama").eval()
    ids, _ = a_batch()
    before = model(input_ids=ids).logits
    add_fused_lm_head(model)
    add_completion_head(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.generate(ids[:, :4], max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (4, 6)


def test_float64_stays_float64() -> None:
    model = build("gpt2").double().eval()
    ids, labels = a_batch()
    own = torch.log_softmax(model(input_ids=ids).logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    add_fused_lm_head(model)
    add_completion_head(model)
    found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    mask = labels[:, 1:] != -100
    torch.testing.assert_close(found[mask], own[mask], rtol=1e-12, atol=1e-12)


def test_a_model_whose_logits_it_cannot_explain_keeps_trls_head() -> None:
    model = build("llama")
    model.lm_head.register_forward_hook(lambda *_: None)
    model.config.final_logit_softcapping = 0.5  # says what the model does not do
    add_fused_lm_head(model)
    fused = model.forward
    add_completion_head(model)
    assert model.forward == fused


def test_removing_gives_the_model_back_as_it_was() -> None:
    model = build("llama").eval()
    ids, labels = a_batch()
    add_fused_lm_head(model)
    add_completion_head(model)
    add_completion_head(model)
    remove_completion_head(model)
    remove_completion_head(model)
    assert "forward" not in vars(model)
    assert model(input_ids=ids, labels=labels).logits.shape == (4, 11, 97)
