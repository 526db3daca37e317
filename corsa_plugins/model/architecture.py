"""Where the blocks, the FFN of each, the final norm and the vocabulary head live, for any Hugging Face decoder.

Found from how the model is built, never from what it is called:

* blocks: the one outermost ``nn.ModuleList`` of the text decoder;
* FFN: the one child of a block that sees no attention mask and is made of two or three linear maps, one or two from
  the hidden width to an inner width and one, the last, back; a gate and an up map may be one map of twice the width;
* final norm: the one sibling of the blocks, after them if there is one, made of vectors of the hidden width;
* head and embedding: what the model says they are.

Where a rule finds nothing, or more than one, the model is refused rather than guessed at, with what to pass by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from corsa_plugins.errors import CorsaError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Architecture",
    "ArchitectureError",
    "FeedForward",
    "LinearMap",
    "Place",
    "accepts_logits_to_keep",
    "find_architecture",
]


class ArchitectureError(CorsaError, ValueError):
    """A model whose parts cannot be told apart; the message says which, and what to pass by hand."""


_Module = TypeVar("_Module", bound=nn.Module, covariant=True)


@dataclass(frozen=True)
class Place(Generic[_Module]):
    """A module and its name in the model, as ``model.get_submodule`` takes it."""

    name: str
    module: _Module


@dataclass(frozen=True)
class LinearMap:
    """A linear map, whichever way its weight is stored.

    Attributes:
        name: Of the module in the model.
        module: An ``nn.Linear``, or GPT-2's ``Conv1D``, which stores the transpose.
        d_in: Number of input features.
        d_out: Number of output features.
    """

    name: str
    module: nn.Module
    d_in: int
    d_out: int

    @property
    def transposed(self) -> bool:
        """Whether the parameter is stored as (d_in, d_out)."""
        return isinstance(self.module, Conv1D)

    @property
    def weight(self) -> Tensor:
        """W of shape (d_out, d_in), a view of the parameter: writing to it without gradients changes the model."""
        parameter: Any = self.module.weight
        return parameter.t() if self.transposed else parameter


@dataclass(frozen=True)
class FeedForward(Place[nn.Module]):
    """The FFN of one block.

    Attributes:
        up: The maps from the hidden width; a gate is one of them. Empty if the FFN was named by hand and fits no rule.
        down_map: The map back to the hidden width, whose input is the key and whose output the value; see ``down``.
    """

    up: tuple[LinearMap, ...] = ()
    down_map: LinearMap | None = None

    @property
    def down(self) -> LinearMap:
        """The map back to the hidden width.

        Raises:
            ArchitectureError: The FFN was named by hand and its down map was not.
        """
        if self.down_map is None:
            raise ArchitectureError(f"{self.name} is not made as an FFN usually is: pass down=, its last linear map")
        return self.down_map


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
    blocks: tuple[Place[nn.Module], ...]
    embedding: Place[nn.Module]
    head: Place[nn.Module]
    hidden_size: int
    _norm: str | None = field(default=None, repr=False)
    _ffn: str | None = field(default=None, repr=False)
    _down: str | None = field(default=None, repr=False)

    def block(self, layer: int) -> Place[nn.Module]:
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

        Raises:
            SettingError: There is no such block.
            ArchitectureError: The block has no FFN that can be told from its other parts.
        """
        block = self.block(layer)
        down = None
        if self._down is not None:
            down = _linear_map(self._down.format(layer), _named(self.model, "down", self._down, layer))
            if down is None:
                raise ArchitectureError(f"down: {self._down.format(layer)} is not a linear map: name one")
        if self._ffn is not None:
            name = self._ffn.format(layer)
            module = _named(self.model, "ffn", self._ffn, layer)
            found = _feed_forward(name, module, self.hidden_size)
            up = found.up if isinstance(found, FeedForward) else ()
            return FeedForward(name, module, up, down or (found.down if isinstance(found, FeedForward) else None))
        found = _find_feed_forward(block, self.hidden_size)
        return FeedForward(found.name, found.module, found.up, down or found.down_map)

    @property
    def norm(self) -> Place[nn.Module]:
        """The norm between the last block and the head.

        Raises:
            ArchitectureError: None, or more than one, can be it.
        """
        if self._norm is not None:
            return Place(self._norm, _named(self.model, "norm", self._norm))
        found = _find_norms(self.model, self.blocks, self.hidden_size)
        if len(found) != 1:
            raise ArchitectureError(
                f"{_kind(self.model)}: {_either(found) if found else 'no module beside the blocks'} looks like the "
                'final norm: pass norm=, for instance norm="model.norm"'
            )
        return found[0]


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
            f"{_kind(model)} has an adapter, which would hide the weights: merge it first, model.merge_and_unload()"
        )
    names = {id(module): name for name, module in model.named_modules()}
    vocabulary = _ask(model, "get_output_embeddings") if head is None else _named(model, "head", head)
    if vocabulary is None:
        raise ArchitectureError(
            f"{_kind(model)} has no vocabulary head: load it with AutoModelForCausalLM, or pass head="
        )
    as_map = _linear_map("", vocabulary)
    if as_map is None:
        raise ArchitectureError(f"the head of {_kind(model)} is not a linear map but {_kind(vocabulary)}: pass head=")
    embedding = _ask(model, "get_input_embeddings")
    if embedding is None:
        raise ArchitectureError(f"{_kind(model)} does not say which module embeds its tokens")
    return Architecture(
        model,
        _blocks_by_hand(model, blocks) if blocks is not None else _find_blocks(model, names),
        Place(names[id(embedding)], embedding),
        Place(names.get(id(vocabulary), "lm_head"), vocabulary),
        as_map.d_in,
        norm,
        ffn,
        down,
    )


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model can be told at how many positions, counted from the end, to run its vocabulary head."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def _kind(module: object) -> str:
    return type(module).__name__


def _either(places: list[Place[nn.Module]]) -> str:
    return " or ".join(place.name for place in places)


def _ask(model: nn.Module, method: str) -> nn.Module | None:
    """What a method of transformers' models gives, ``None`` where there is none."""
    asked: Any = getattr(model, method, None)
    return asked() if asked is not None else None


def _named(model: nn.Module, what: str, template: str, layer: int | None = None) -> nn.Module:
    name = template if layer is None else template.format(layer)
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ArchitectureError(f"{what}: {_kind(model)} has no module {name!r}; see model.named_modules()") from None


def _blocks_by_hand(model: nn.Module, template: str) -> tuple[Place[nn.Module], ...]:
    modules = dict(model.named_modules())
    found: list[Place[nn.Module]] = []
    while "{}" in template and (name := template.format(len(found))) in modules:
        found.append(Place(name, modules[name]))
    if not found:
        raise ArchitectureError(
            f"blocks: {_kind(model)} has no module {template.replace('{}', '0')!r}: "
            'write the name with {} for the number, as in "model.layers.{}"'
        )
    return tuple(found)


def _find_blocks(model: nn.Module, names: dict[int, str]) -> tuple[Place[nn.Module], ...]:
    # Of a model with eyes or ears, the text decoder: their blocks are not those that know facts.
    decoder = _ask(model, "get_decoder") or model
    lists = [Place(names.get(id(found), ""), found) for found in _outermost_lists(decoder)]
    if len(lists) > 1:
        count = getattr(_text_config(model), "num_hidden_layers", None)
        lists = [place for place in lists if len(place.module) == count] or lists
    if len(lists) != 1:
        what = " and ".join(f"{place.name} ({len(place.module)})" for place in lists)
        raise ArchitectureError(
            f"{_kind(model)}: {f'{what} could each be the blocks' if lists else 'no list of blocks is to be found'}: "
            'pass blocks= with {} for the number, for instance blocks="model.layers.{}"'
        )
    (place,) = lists
    return tuple(Place(f"{place.name}.{i}", block) for i, block in enumerate(place.module))


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            if len(child) and all(next(block.parameters(), None) is not None for block in child):
                yield child
        else:
            yield from _outermost_lists(child)


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _linear_map(name: str, module: nn.Module) -> LinearMap | None:
    if isinstance(module, nn.Linear):
        return LinearMap(name, module, module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        return LinearMap(name, module, module.nx, module.nf)
    return None


def _find_feed_forward(block: Place[nn.Module], hidden: int) -> FeedForward:
    found: list[Place[nn.Module]] = []
    obstacles: list[str] = []
    for name, child in block.module.named_children():
        if _attends(child) or next(child.children(), None) is None:
            continue
        result = _feed_forward(f"{block.name}.{name}", child, hidden)
        if isinstance(result, FeedForward):
            found.append(result)
        else:
            obstacles.append(f"{block.name}.{name} ({_kind(child)}) {result}")
    if len(found) == 1 and isinstance(found[0], FeedForward):
        return found[0]
    why = f"{_either(found)} could each be its FFN" if found else "; ".join(obstacles) or "no child looks like an FFN"
    number = block.name.rpartition(".")[2]
    raise ArchitectureError(
        f"{block.name} ({_kind(block.module)}): {why}. Pass what to edit by hand: ffn= and down= with {{}} for the "
        f"number of the block, for instance ffn={block.name.removesuffix(number) + '{}.mlp'!r}; for R-SFT, modules="
    )


def _attends(module: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(type(module).forward).parameters


def _feed_forward(name: str, module: nn.Module, hidden: int) -> FeedForward | str:
    """The module as an FFN, or why it is none."""
    # Transformers keeps experts as one parameter of three axes, other code as a list of modules.
    if any(isinstance(part, nn.ModuleList) for part in module.modules()) or any(
        parameter.dim() > 2 for parameter in module.parameters()
    ):
        return "is a mixture of experts, which has no one FFN"
    maps = [
        found
        for part_name, part in module.named_modules()
        if (found := _linear_map(f"{name}.{part_name}", part)) is not None
    ]
    if len(maps) not in (2, 3):
        return f"has {len(maps)} linear maps, an FFN has two or three"
    *up, down = maps
    inner = [down.d_in] if len(up) == 2 else [down.d_in, 2 * down.d_in]
    if down.d_out != hidden or any(one.d_in != hidden or one.d_out not in inner for one in up):
        shapes = ", ".join(f"{one.d_in} to {one.d_out}" for one in maps)
        return f"maps {shapes}: not from the hidden width {hidden} to another and back"
    return FeedForward(name, module, tuple(up), down)


def _find_norms(model: nn.Module, blocks: tuple[Place[nn.Module], ...], hidden: int) -> list[Place[nn.Module]]:
    list_name = blocks[0].name.rpartition(".")[0]
    parent_name = list_name.rpartition(".")[0]
    before: list[Place[nn.Module]] = []
    after: list[Place[nn.Module]] = []
    seen = False
    for name, child in model.get_submodule(parent_name).named_children():
        full = f"{parent_name}.{name}".lstrip(".")
        if full == list_name:
            seen = True
        shapes = [tuple(parameter.shape) for parameter in child.parameters()]
        if shapes and all(shape == (hidden,) for shape in shapes) and next(child.children(), None) is None:
            (after if seen else before).append(Place(full, child))
    # OPT registers its final norm before its blocks, Bloom a norm of the embedding; the order of registration decides
    # only where both are there.
    return after or before
