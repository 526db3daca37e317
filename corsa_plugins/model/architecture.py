"""Where the blocks, the FFN of each, the final norm and the vocabulary head live, for any Hugging Face decoder.

What is named by hand is taken; head and embedding are what the model says they are; the rest is found by the rules of
:mod:`corsa_plugins.model.structure`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from corsa_plugins.errors import SettingError
from corsa_plugins.model.experts import Mixture, find_mixture
from corsa_plugins.model.parts import ArchitectureError, FeedForward, LinearMap, NamedModule, as_linear_map
from corsa_plugins.model.routed import RoutedExperts, routed_experts
from corsa_plugins.model.structure import ask_model, feed_forward, find_blocks, find_feed_forward, find_norm, kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Architecture",
    "ArchitectureError",
    "FeedForward",
    "LinearMap",
    "Mixture",
    "NamedModule",
    "RoutedExperts",
    "accepts_logits_to_keep",
    "find_architecture",
]


@dataclass(frozen=True)
class Architecture:
    """The parts of a decoder.

    Attributes:
        blocks: In the order they run in.
        embedding: Of the input tokens.
        head: The vocabulary projection.
        hidden_size: Width of the residual stream.
    """

    model: nn.Module
    blocks: tuple[NamedModule[nn.Module], ...]
    embedding: NamedModule[nn.Module]
    head: NamedModule[nn.Module]
    hidden_size: int
    _norm: str | None = field(default=None, repr=False)
    _ffn: str | None = field(default=None, repr=False)
    _down: str | None = field(default=None, repr=False)

    def block(self, layer: int) -> NamedModule[nn.Module]:
        """Block number ``layer``, counted from 0.

        Raises:
            SettingError: There is no such block; the message says how many there are.
        """
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(self.blocks):
            raise SettingError(
                f"layer is {layer!r}: the model has {len(self.blocks)} blocks, numbered from 0 to "
                f"{len(self.blocks) - 1}"
            )
        return self.blocks[layer]

    def ffn(self, layer: int) -> FeedForward:
        """The FFN of block ``layer``. Blocks are looked at one by one: a model may have experts in some only.

        Of a mixture of experts it is the one that every token takes, where there is one: a dense FFN like any other.

        Raises:
            SettingError: There is no such block.
            ArchitectureError: The block has no FFN that can be told from its other parts.
        """
        block = self.block(layer)
        down = None
        if self._down is not None:
            down = as_linear_map(self._down.format(layer), _named(self.model, "down", self._down, layer))
            if down is None:
                raise ArchitectureError(f"$down: {self._down.format(layer)} is not a linear map: name one")
        if self._ffn is None:
            ffn = self._feed_forward(block)
            return replace(ffn, down_map=down or ffn.down_map)
        name = self._ffn.format(layer)
        module = _named(self.model, "ffn", self._ffn, layer)
        fitting = feed_forward(name, module, self.hidden_size)
        if isinstance(fitting, FeedForward):
            return FeedForward(name, module, fitting.up, down or fitting.down_map)
        return FeedForward(name, module, (), down)

    def mixture(self, layer: int) -> Mixture | None:
        """The mixture of experts of block ``layer``; ``None`` where it has none.

        Raises:
            SettingError: There is no such block.
        """
        return find_mixture(self.block(layer), self.hidden_size)

    def edited(self, layer: int) -> LinearMap:
        """The map whose weight an edit of block ``layer`` changes, whose inputs are its keys.

        It is the FFN's down map; of a mixture of experts without an FFN that every token takes, or where ``down`` names
        them by hand, all routed experts side by side.

        Raises:
            SettingError: There is no such block.
            ArchitectureError: The block has neither, or experts whose keys cannot be told.
        """
        mixture = self.mixture(layer)
        fused = None if mixture is None else mixture.fused
        if self._down is not None:
            named = fused is not None and self._down.format(layer) in (fused.name, fused.down)
            return routed_experts(fused) if fused is not None and named else self.ffn(layer).down
        try:
            return self.ffn(layer).down
        except ArchitectureError:
            if fused is None or self._ffn is not None:
                raise
            return routed_experts(fused)

    def trained(self, layer: int) -> tuple[str, ...]:
        """Names of the modules that train where the FFN of block ``layer`` is to: it alone, or, of a mixture of experts
        without one that every token takes, the routed experts, and not what routes.

        Raises:
            SettingError: There is no such block.
            ArchitectureError: The block has neither.
        """
        try:
            return self.ffn(layer).modules
        except ArchitectureError:
            mixture = self.mixture(layer)
            routed = () if mixture is None else mixture.routed
            if not routed:
                raise
            return routed

    def _feed_forward(self, block: NamedModule[nn.Module]) -> FeedForward:
        try:
            return find_feed_forward(block, self.hidden_size)
        except ArchitectureError:
            mixture = find_mixture(block, self.hidden_size)
            if mixture is None or mixture.shared is None:
                raise
            return mixture.shared

    @property
    def norm(self) -> NamedModule[nn.Module]:
        """The norm between the last block and the head.

        Raises:
            ArchitectureError: None, or more than one, can be it.
        """
        if self._norm is not None:
            return NamedModule(self._norm, _named(self.model, "norm", self._norm))
        return find_norm(self.model, self.blocks, self.hidden_size)


def find_architecture(
    model: PreTrainedModel | nn.Module,
    *,
    blocks: str | None = None,
    ffn: str | None = None,
    down: str | None = None,
    norm: str | None = None,
    head: str | None = None,
) -> Architecture:
    """Find the parts of a causal language model.

    What is passed by hand overrides what would be found. Names are those of ``model.named_modules()``; ``{}`` stands
    for the number of the block.

    Args:
        model: A causal language model of transformers, without an adapter.
        blocks: For instance ``"transformer.h.{}"``.
        ffn: For instance ``"transformer.h.{}.mlp"``.
        down: The last linear map of the FFN, for instance ``"transformer.h.{}.mlp.c_proj"``.
        norm: The final norm, for instance ``"transformer.ln_f"``.
        head: The vocabulary projection, for instance ``"lm_head"``.

    Raises:
        ArchitectureError: Blocks or head cannot be told, a name by hand is not there, or the model has an adapter.
            FFN and norm are looked for when they are asked for.
    """
    if hasattr(model, "peft_config") or hasattr(model, "get_base_model"):
        raise ArchitectureError(
            f"{kind(model)} has an adapter, which would hide the weights: merge it first, model.merge_and_unload()"
        )
    names = {id(module): name for name, module in model.named_modules()}
    vocabulary = ask_model(model, "get_output_embeddings") if head is None else _named(model, "head", head)
    if vocabulary is None:
        raise ArchitectureError(
            f"{kind(model)} has no vocabulary head: load it with AutoModelForCausalLM", ", or pass $head="
        )
    as_map = as_linear_map("", vocabulary)
    if as_map is None:
        raise ArchitectureError(
            f"the head of {kind(model)} is not a linear map but {kind(vocabulary)}", ": pass $head="
        )
    embedding = ask_model(model, "get_input_embeddings")
    if embedding is None:
        raise ArchitectureError(f"{kind(model)} does not say which module embeds its tokens")
    return Architecture(
        model,
        _blocks_by_hand(model, blocks) if blocks is not None else find_blocks(model),
        NamedModule(names[id(embedding)], embedding),
        NamedModule(names.get(id(vocabulary), "lm_head"), vocabulary),
        as_map.d_in,
        norm,
        ffn,
        down,
    )


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model can be told at how many positions, counted from the end, to run its vocabulary head."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def _named(model: nn.Module, what: str, template: str, layer: int | None = None) -> nn.Module:
    name = template if layer is None else template.format(layer)
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ArchitectureError(f"${what}: {kind(model)} has no module {name!r}; see model.named_modules()") from None


def _blocks_by_hand(model: nn.Module, template: str) -> tuple[NamedModule[nn.Module], ...]:
    modules = dict(model.named_modules())
    blocks: list[NamedModule[nn.Module]] = []
    while "{}" in template and (name := template.format(len(blocks))) in modules:
        blocks.append(NamedModule(name, modules[name]))
    if not blocks:
        raise ArchitectureError(
            f"$blocks: {kind(model)} has no module {template.replace('{}', '0')!r}: "
            'write the name with {} for the number, as in "model.layers.{}"'
        )
    return tuple(blocks)
