"""The one-backward path against the plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from corsa_plugins.corsa import (
    OneBackward,
    TaskGradients,
    TwoBackwards,
    TwoPasses,
    dpo_loss,
    sft_loss,
    token_weights,
)
from tests.support import checkpointing

ROWS, LENGTH, START = 6, 9, 5


def with_adapter(model: nn.Module, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    return get_peft_model(model, LoraConfig(init_lora_weights=False, **config))  # type: ignore[arg-type]


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def batch(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Token ids (6, 9), three pairs, and the completion mask (6, 8) of the predicted tokens, of uneven length."""
    ids = torch.randint(3, vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(ROWS, LENGTH - 1)
    for row in range(ROWS):
        mask[row, START : START + 1 + row % 3] = 1
    return ids, mask


def closures(model: nn.Module, dpo: bool = True) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    ids, mask = batch(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    reference = torch.linspace(-9, -8, ROWS // 2)

    def forward() -> Tensor:
        logits = model(input_ids=ids).logits[:, :-1]
        found = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)
        return found.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask

    def weigh(log_probs: Tensor) -> object:
        return token_weights(
            log_probs,
            lambda x: sft_loss(x, mask),
            (lambda x: dpo_loss(x * mask, reference, reference - 1)) if dpo else None,
        )

    return forward, weigh


def assert_same(left: TaskGradients, right: TaskGradients, tolerance: float) -> None:
    for ours, theirs in ((left.sft, right.sft), (left.dpo, right.dpo)):
        if theirs is None:
            assert ours is None
            continue
        assert ours is not None
        scale = max(float(t.abs().max()) for t in theirs)
        assert scale > 0
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max()) <= tolerance * scale


# GPT-2 computes in float64 throughout; Llama's norms and rotary angles are float32 whatever the model's precision, and
# round differently for differently scaled gradients.
FLOAT64, FLOAT32_NORMS = 1e-12, 1e-6


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32))


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("dpo", [True, False], ids=["both", "sft-alone"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_backward_equals_two(tiny_llama: LlamaForCausalLM, family: str, dpo: bool) -> None:
    model = with_adapter((tiny_llama if family == "llama" else gpt2()).double()).eval()
    phi = parameters(model)
    one, two = OneBackward(model, phi), TwoBackwards(phi)
    tolerance = FLOAT32_NORMS if family == "llama" else FLOAT64
    assert_same(one(*closures(model, dpo)), two(*closures(model, dpo)), tolerance)
    assert one.fallback_reason is None


def test_one_backward_equals_two_under_gradient_checkpointing() -> None:
    model = with_adapter(without_dropout(gpt2()).double()).train()
    phi = parameters(model)
    plain = TwoBackwards(phi)(*closures(model))
    checkpointing.enable(model, use_reentrant=False)
    model.enable_input_require_grads()
    assert_same(OneBackward(model, phi)(*closures(model)), plain, FLOAT64)


def test_one_backward_equals_two_under_autocast(tiny_llama: LlamaForCausalLM) -> None:
    """bfloat16 rounds the activations' gradients at different scales in the two paths, so they agree to its 2^-8."""
    model = with_adapter(tiny_llama).eval()
    phi = parameters(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(OneBackward(model, phi)(*closures(model)), TwoBackwards(phi)(*closures(model)), 4e-2)


def test_one_backward_with_lora_dropout_follows_the_masks_of_its_own_forward() -> None:
    model = with_adapter(gpt2().double(), lora_dropout=0.3).train()
    phi = parameters(model)
    torch.manual_seed(7)
    one = OneBackward(model, phi)(*closures(model))
    torch.manual_seed(7)
    assert_same(one, TwoBackwards(phi)(*closures(model)), 1e-12)


@pytest.mark.parametrize("dpo", [True, False], ids=["both", "sft-alone"])
def test_two_passes_have_the_masks_of_one(dpo: bool) -> None:
    model = with_adapter(gpt2().double(), lora_dropout=0.3).train()
    phi = parameters(model)
    torch.manual_seed(7)
    passes = TwoPasses(phi)(*closures(model, dpo))
    torch.manual_seed(7)
    assert_same(passes, TwoBackwards(phi)(*closures(model, dpo)), FLOAT64)


def test_layers_are_themselves_again_after_a_call(tiny_llama: LlamaForCausalLM) -> None:
    model = with_adapter(tiny_llama).eval()
    forward, weigh = closures(model)
    before = forward()
    linearization = OneBackward(model, parameters(model))

    def fail(_: Tensor) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        linearization(forward, fail)  # type: ignore[arg-type]
    linearization(forward, weigh)  # type: ignore[arg-type]
    after = forward()
    assert torch.equal(before, after)
    assert after.requires_grad
    assert not any("forward" in vars(m) for m in model.modules() if isinstance(m, nn.Linear))


class TokenWise(nn.Module):
    """A model whose trainable layer sees all tokens of a batch as one list, as experts of a mixture do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = GPT2Config(vocab_size=64)
        self.embedding = nn.Embedding(64, 16).requires_grad_(False)
        self.layer = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 64, bias=False).requires_grad_(False)

    def forward(self, input_ids: Tensor) -> CausalLMOutput:
        tokens = self.embedding(input_ids).flatten(0, 1)
        return CausalLMOutput(logits=self.head(self.layer(tokens).unflatten(0, input_ids.shape)))


class Shared(TokenWise):
    """A model that runs one layer twice, as models with shared blocks do."""

    def forward(self, input_ids: Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.layer(torch.tanh(self.layer(self.embedding(input_ids))))))


def test_a_layer_that_runs_twice_gets_both_gradients() -> None:
    model = Shared().double()
    phi = parameters(model)
    one = OneBackward(model, phi)
    assert_same(one(*closures(model)), TwoBackwards(phi)(*closures(model)), FLOAT64)
    assert one.fallback_reason is None


def test_a_layer_that_does_not_keep_sequences_apart_falls_back_to_two() -> None:
    model = TokenWise().double()
    phi = parameters(model)
    one = OneBackward(model, phi)
    plain = TwoBackwards(phi)(*closures(model))
    for _ in range(2):  # the call that finds out, and one that knows
        assert_same(one(*closures(model)), plain, FLOAT64)
    assert one.fallback_reason is not None
    assert "one row per sequence" in one.fallback_reason


@pytest.mark.parametrize(
    "settings", [{}, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}]
)
def test_adapters_of_fused_experts_are_served(settings: dict[str, object]) -> None:
    """PEFT computes with their matrices itself, without calling the layers that hold them."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, experts_implementation="eager",
    )  # fmt: skip
    model = with_adapter(MixtralForCausalLM(config), **settings).eval()
    phi = parameters(model)
    plain = TwoBackwards(phi)(*closures(model))
    assert all(float(g.abs().max()) > 0 for g in plain.sft)  # every expert has seen a token
    if OneBackward.obstacle(model, phi) is None:
        one = OneBackward(model, phi)
        assert_same(one(*closures(model)), plain, 1e-5)
        wrapped = any(type(module).__name__ == "ParamWrapper" for module in model.modules())  # not with an older PEFT
        assert (one.fallback_reason is not None) == wrapped


def test_token_weights_that_differ_within_a_sequence_fall_back_to_two() -> None:
    model = with_adapter(gpt2().double()).eval()
    phi = parameters(model)
    forward, _ = closures(model)

    def uneven(log_probs: Tensor) -> object:
        ramp = torch.arange(log_probs.shape[1], dtype=log_probs.dtype)
        return token_weights(log_probs, lambda x: -(x * ramp).mean(), lambda x: x.sum())

    one = OneBackward(model, phi)
    assert_same(one(forward, uneven), TwoBackwards(phi)(forward, uneven), 1e-12)  # type: ignore[arg-type]
    assert one.fallback_reason is not None
    assert "differently" in one.fallback_reason


def test_trainable_weights_that_are_not_loras_are_an_obstacle(tiny_llama: LlamaForCausalLM) -> None:
    model = with_adapter(tiny_llama, use_dora=True)
    reason = OneBackward.obstacle(model, parameters(model))
    assert reason is not None
    assert "lora_magnitude_vector" in reason
    with pytest.raises(ValueError, match="Use TwoBackwards"):
        OneBackward(model, parameters(model))
