"""The adapter of an edit is the edited model, in every family; what a server asks of its folder holds; back it is the
same state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from corsa_plugins.adapters import Asked, adopt_adapter, adopting_editor, export_state, read_adapter, read_directions
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings
from corsa_plugins.alphaedit.weights import LayerUpdate
from corsa_plugins.model.architecture import Architecture, ArchitectureError, find_architecture
from tests.model.test_architecture import HIDDEN, build
from tests.support.families import LATER, NAMES, REQUESTS, family
from tests.support.mixtures import MIXTURES
from tests.support.serving import assert_llama_cpp_converts, assert_vllm_loads, read

LAYERS = (0, 1)
ROUNDING = 2e-6
IN_GGUF = {
    "gptj": "GPTJ", "gpt_neox": "GPTNEOX", "llama2": "LLAMA", "llama3": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3",
    "mistral": "LLAMA", "gemma": "GEMMA", "gemma2": "GEMMA2", "gemma3": "GEMMA3", "phi3": "PHI3", "olmo2": "OLMO2",
    "falcon": "FALCON", "bloom": "BLOOM", "olmo": "OLMO", "gemma3n": "GEMMA3N", "gemma4": "GEMMA4", "qwen3_5": "QWEN35",
    "ministral3": "MISTRAL3", "phi4": "PHI3", "glm": "CHATGLM", "glm4": "GLM4", "lfm2": "LFM2", "granite": "GRANITE",
    "falcon_h1": "FALCON_H1",
}  # fmt: skip


def logits(model: Any) -> Tensor:
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return result


def changed(editor: AlphaEditor, parts: Architecture, seed: int) -> None:
    """A batch of three edits' size; the second batch leaves one layer alone, whose rank is then smaller."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for layer in LAYERS[: 2 - seed]:
        down = parts.ffn(layer).down
        left, right = (torch.randn(size, 3, generator=generator) * 0.3 for size in (down.d_out, down.d_in))
        updates[layer] = LayerUpdate(right[:, :0], left, right)
    editor.adopt(updates, name="ab"[seed])


@pytest.mark.parametrize("name", [*NAMES, *LATER])
def test_base_and_adapter_are_the_edited_model(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base: Any = family(name, len(tiny_tokenizer))
    base.config._name_or_path = f"tiny/{name}"
    edited = copy.deepcopy(base)
    parts = find_architecture(edited)
    editor = AlphaEditor(edited, tiny_tokenizer, None, AlphaEditSettings(layers=LAYERS))
    changed(editor, parts, 0)
    changed(editor, parts, 1)
    exported = export_state(editor.state, tmp_path / "out", asked=Asked(base, tiny_tokenizer))
    assert exported.rank == 6
    assert [module.rank for module in exported.modules.values()] == [6, 3]
    assert_vllm_loads(tmp_path / "out")
    assert read(tmp_path / "out")[0]["fan_in_fan_out"] == (name == "gpt2")
    architecture = IN_GGUF.get(name)
    if architecture:
        assert_llama_cpp_converts(tmp_path / "out", architecture, 3)

    own = copy.deepcopy(base)
    served = logits(PeftModel.from_pretrained(own, tmp_path / "out"))
    plain, wanted = logits(base), logits(edited)
    scale = float(wanted.abs().max())
    assert float((plain - wanted).abs().max()) > 0.05 * scale
    assert float((served - wanted).abs().max()) < ROUNDING * scale * (1 + float(wanted.abs().max() / plain.abs().max()))

    before = {layer: find_architecture(base).ffn(layer).down.weight.clone() for layer in LAYERS}
    adapter = read_adapter(tmp_path / "out")
    back = adopting_editor(base, tiny_tokenizer, adapter)
    adopt_adapter(back, adapter)
    assert all(torch.equal(one, other) for one, other in zip(base.parameters(), edited.parameters(), strict=True))
    back.revert("1")
    assert all(torch.equal(find_architecture(base).ffn(layer).down.weight, before[layer]) for layer in LAYERS)


def test_a_convolution_is_no_experts(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Of a model that hears, for instance: its weights have three axes too."""
    model: Any = family("llama3", len(tiny_tokenizer))
    model.model.add_module("ears", nn.Conv1d(HIDDEN, HIDDEN, 3))
    editor = AlphaEditor(model, tiny_tokenizer, None, AlphaEditSettings(layers=LAYERS))
    changed(editor, find_architecture(model), 0)
    assert export_state(editor.state, tmp_path / "out", base="tiny").rank == 3


def test_beside_fused_experts_an_adapter_is_not_put_where_it_reads(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """PEFT would put it onto the experts, by its name."""
    model = build(MIXTURES["qwen2_moe"][0](vocab_size=len(tiny_tokenizer)))
    with pytest.raises(ArchitectureError, match="mixture of experts"):
        read_directions(model, tiny_tokenizer, REQUESTS, LAYERS)
