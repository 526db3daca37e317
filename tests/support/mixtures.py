"""Configurations of small mixtures of experts, of every way transformers builds them, and what is in them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import transformers as hf
from torch import nn

PEFT_READS_EXPERTS = tuple(map(int, version("peft").split(".")[:2])) >= (0, 19)
"""Before, the factors of (experts, out, in) had each other's shapes."""

HIDDEN, INNER, EXPERT = 16, 40, 8
COUNT, TAKEN = 4, 2
PLAIN: dict[str, Any] = {
    "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "hidden_size": HIDDEN,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": INNER,
}  # fmt: skip
_ROUTED = {"num_experts": COUNT, "num_experts_per_tok": TAKEN, "moe_intermediate_size": EXPERT}
_LOCAL = {"num_local_experts": COUNT, "num_experts_per_tok": TAKEN}
_LATENT = {
    "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
_DEEPSEEK = {
    "n_routed_experts": COUNT, "num_experts_per_tok": TAKEN, "moe_intermediate_size": EXPERT, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_LINEAR = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 1, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_SHARED = {"shared_expert_intermediate_size": EXPERT}


def _of(kind: str, **own: Any) -> Callable[..., Any]:
    return lambda **more: getattr(hf, kind)(**(PLAIN | own | more))


# By family: its configuration; the module of its experts, its shared FFN and its routers in block 1, behind the block's
# name; whether the down map is stored as (experts, in, out).
MIXTURES: dict[str, tuple[Callable[..., Any], str, str | None, list[str], bool]] = {
    "mixtral": (_of("MixtralConfig", **_LOCAL), "mlp.experts", None, ["mlp.gate"], False),
    "qwen2_moe": (
        _of("Qwen2MoeConfig", **_ROUTED, **_SHARED),
        "mlp.experts", "mlp.shared_expert", ["mlp.gate", "mlp.shared_expert_gate"], False,
    ),
    "qwen3_moe": (_of("Qwen3MoeConfig", head_dim=8, **_ROUTED), "mlp.experts", None, ["mlp.gate"], False),
    "qwen3_5_moe": (
        _of("Qwen3_5MoeTextConfig", head_dim=8, **_ROUTED, **_SHARED, **_LINEAR),
        "mlp.experts", "mlp.shared_expert", ["mlp.gate", "mlp.shared_expert_gate"], False,
    ),
    "gpt_oss": (_of("GptOssConfig", head_dim=8, **_LOCAL), "mlp.experts", None, ["mlp.router"], True),
    "deepseek_v3": (
        _of("DeepseekV3Config", **_DEEPSEEK, **_LATENT), "mlp.experts", "mlp.shared_experts", ["mlp.gate"], False,
    ),
    "glm4_moe": (
        _of("Glm4MoeConfig", head_dim=8, **_DEEPSEEK), "mlp.experts", "mlp.shared_experts", ["mlp.gate"], False,
    ),
    "llama4": (
        _of("Llama4TextConfig", head_dim=8, intermediate_size_mlp=INNER, num_local_experts=COUNT,
            num_experts_per_tok=1, interleave_moe_layer_step=1),
        "feed_forward.experts", "feed_forward.shared_expert", ["feed_forward.router"], True,
    ),
    "granitemoeshared": (
        _of("GraniteMoeSharedConfig", shared_intermediate_size=24, **_LOCAL),
        "block_sparse_moe.experts", "shared_mlp", ["block_sparse_moe.router"], False,
    ),
    "olmoe": (_of("OlmoeConfig", **_ROUTED), "mlp.experts", None, ["mlp.gate"], False),
    "phimoe": (_of("PhimoeConfig", **_LOCAL), "mlp.experts", None, ["mlp.router"], False),
    "lfm2_moe": (
        _of("Lfm2MoeConfig", num_dense_layers=1, layer_types=["conv", "full_attention", "conv"], **_ROUTED),
        "feed_forward.experts", None, ["feed_forward.gate"], False,
    ),
    "gemma4_moe": (
        _of("Gemma4TextConfig", head_dim=8, global_head_dim=8, enable_moe_block=True, num_experts=COUNT,
            top_k_experts=TAKEN, moe_intermediate_size=EXPERT, hidden_size_per_layer_input=0, num_kv_shared_layers=0,
            vocab_size_per_layer_input=50, layer_types=["full_attention"] * 3),
        "experts", "mlp", ["router.proj"], False,
    ),
}  # fmt: skip


def listed_experts(width: int, n_experts: int = 2) -> nn.Sequential:
    """An FFN of experts in a list of modules, and a gate; for what reads a model's parts, as it runs on nothing."""
    experts = [nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width)) for _ in range(n_experts)]
    mixture = nn.Sequential()
    mixture.add_module("experts", nn.ModuleList(experts))
    mixture.add_module("gate", nn.Linear(width, n_experts))
    return mixture
