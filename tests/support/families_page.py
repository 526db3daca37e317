"""The two tables of docs/families.md, from what is found of a small model of each family.

``python -m tests.support.families_page`` prints them, to be put in place of those on the page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from corsa_plugins.model.architecture import ArchitectureError, find_architecture
from corsa_plugins.model.running import adds_output_as_it_is
from tests.model.test_architecture import COMMON, FAMILIES, GROUPED, HIDDEN, build
from tests.support.families import family
from tests.support.mixtures import MIXTURES

__all__ = ["EDITED", "OTHERS", "REFUSED", "ROUTED", "SHARED", "edited_row", "edited_rows", "refused_rows", "small"]

OTHERS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: hf.MambaConfig(hidden_size=HIDDEN, num_hidden_layers=3, state_size=8, **COMMON),
    "mamba2": lambda: hf.Mamba2Config(
        hidden_size=HIDDEN, num_hidden_layers=3, num_heads=4, head_dim=8, state_size=8, n_groups=1, **COMMON
    ),
    "jamba": lambda: hf.JambaConfig(
        num_experts=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, **GROUPED
    ),
}
EDITED = [name for name in FAMILIES if name != "llama_square"]
SHARED = [name for name, (_, _, shared, _, _) in MIXTURES.items() if shared]
ROUTED = [*(name for name in MIXTURES if name not in SHARED), "jamba"]
REFUSED = [name for name in OTHERS if name not in ROUTED]

_TITLES = {
    "GPT-2": ["gpt2"],
    "GPT-J": ["gptj"],
    "GPT-NeoX, Pythia": ["gpt_neox"],
    "Llama 2, Llama 3, SmolLM2": ["llama2", "llama3"],
    "Qwen2, Qwen2.5": ["qwen2"],
    "Qwen3": ["qwen3"],
    "Mistral": ["mistral"],
    "Gemma": ["gemma"],
    "Gemma 2": ["gemma2"],
    "Gemma 3": ["gemma3"],
    "Phi-3, Phi-4": ["phi3", "phi4"],
    "OLMo 2": ["olmo2"],
    "Falcon": ["falcon"],
    "BLOOM": ["bloom"],
    "OPT": ["opt"],
    "XGLM": ["xglm"],
    "BioGPT": ["biogpt"],
    "OLMo 1": ["olmo"],
    "Gemma 3n": ["gemma3n"],
    "Gemma 4": ["gemma4"],
    "Qwen3.5": ["qwen3_5"],
    "Ministral 3": ["ministral3"],
    "GLM-4-9B": ["glm"],
    "GLM-4-0414": ["glm4"],
    "LFM2": ["lfm2"],
    "Granite 3": ["granite"],
    "Granite 4, dense": ["granitemoehybrid"],
    "Falcon-H1": ["falcon_h1"],
    "Qwen1.5-MoE, Qwen2-MoE": ["qwen2_moe"],
    "Qwen3.5-MoE": ["qwen3_5_moe"],
    "DeepSeek-V3": ["deepseek_v3"],
    "GLM-4.5": ["glm4_moe"],
    "Llama 4": ["llama4"],
    "Granite MoE, shared expert": ["granitemoeshared"],
    "Gemma 4 MoE": ["gemma4_moe"],
    "Mixtral": ["mixtral"],
    "Qwen3-MoE": ["qwen3_moe"],
    "gpt-oss": ["gpt_oss"],
    "OLMoE": ["olmoe"],
    "Phi-3.5-MoE": ["phimoe"],
    "LFM2-MoE, blocks with experts": ["lfm2_moe"],
    "Jamba, blocks with experts": ["jamba"],
    "Mamba": ["mamba"],
    "Mamba 2": ["mamba2"],
}
"""What people call them, by row, and what is built for it."""

_WHY = {"mamba": "a state-space block", "mamba2": "a state-space block"}


def small(name: str, vocabulary: int) -> Any:
    """A model of a family for a tokenizer."""
    if name in FAMILIES:
        return family(name, vocabulary)
    if name in MIXTURES:
        return build(MIXTURES[name][0](vocab_size=vocabulary, initializer_range=0.2))
    config = OTHERS[name]()
    config.vocab_size = vocabulary
    return build(config)


def edited_row(model: Any) -> str:
    """What a row says behind the name of the family."""
    parts = find_architecture(model)
    down = parts.edited(1)
    template = f"{down.name}{'.down_proj' * (down.experts > 1)}".replace(".1.", ".{}.", 1)
    place = "block" if adds_output_as_it_is(parts, 1) else "map"
    adapter = "PEFT" if any(parts.mixture(layer) for layer in range(len(parts.blocks))) else "yes"
    return f"| `{model.config.model_type}` | `{template}` | {place} | {adapter} |"


def edited_rows() -> list[str]:
    """The rows of the families that are edited.

    Raises:
        ValueError: A family has no title, or a title none; or what is one row differs.
    """
    known = [*EDITED, *SHARED, *ROUTED]
    named = {name: title for title, names in _TITLES.items() for name in names if name not in REFUSED}
    if set(named) != set(known):
        raise ValueError(f"families without a title, or titles without a family: {sorted(set(named) ^ set(known))}")
    rows: dict[str, str] = {}
    for name in known:
        row = f"| {named[name]} {edited_row(small(name, 50))}"
        if rows.setdefault(named[name], row) != row:
            raise ValueError(f"{named[name]} is one row, and {name} differs: {row}")
    return list(rows.values())


def refused_rows() -> list[str]:
    """The rows of the families that are refused by name.

    Raises:
        ValueError: One is not refused.
    """
    rows = []
    titles = {name: title for title, names in _TITLES.items() for name in names}
    for name in REFUSED:
        model = small(name, 50)
        try:
            find_architecture(model).ffn(1)
        except ArchitectureError as error:
            reason = str(error).partition(": ")[2].partition(".")[0]
            rows.append(f"| {titles[name]} | `{model.config.model_type}` | {reason}: {_WHY[name]} |")
        else:
            raise ValueError(f"{name} is edited: take it out of what is refused")
    return rows


if __name__ == "__main__":
    print("\n".join(edited_rows()), "\n".join(refused_rows()), sep="\n\n")  # noqa: T201
