"""By what a decoder's parts are told: from how the model is built, never from what it is called.

* blocks: the one outermost ``nn.ModuleList`` of the text decoder;
* FFN: the one child of a block that sees no attention mask and is made of two or three linear maps, one or two from
  the hidden width to an inner width and one, the last, back; a gate and an up map may be one map of twice the width;
* of two such children the one that does not narrow: a way through less than the hidden width is a low-rank map;
* of a block without such a child, the same maps where they lie loose in the block, as OPT has them;
* final norm: the one sibling of the blocks, after them if there is one, made of vectors of the hidden width; or a layer
  norm of that width without weights.

Where a rule finds nothing, or more than one, the model is refused rather than guessed at, with what to pass by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from corsa_plugins.model.parts import ArchitectureError, FeedForward, LinearMap, NamedModule, as_linear_map

__all__ = [
    "ask_model",
    "attends",
    "expert_parameters",
    "feed_forward",
    "find_blocks",
    "find_feed_forward",
    "find_norm",
    "kind",
]


def find_blocks(model: nn.Module) -> tuple[NamedModule[nn.Module], ...]:
    """The blocks of the text decoder, in the order they run in.

    Raises:
        ArchitectureError: No list of modules, or more than one, can be them.
    """
    names = {id(module): name for name, module in model.named_modules()}
    # Of a model with eyes or ears, the text decoder: their blocks are not those that know facts.
    decoder = ask_model(model, "get_decoder") or model
    found = list(_outermost_lists(decoder))
    lists = [NamedModule(names.get(id(blocks), ""), blocks) for blocks in found]
    if len(lists) > 1:  # Gemma 3n keeps linear maps in lists beside its blocks
        lists = [each for each in lists if any(as_linear_map("", part) is None for part in each.module)] or lists
        count = getattr(_text_config(model), "num_hidden_layers", None)
        lists = [blocks for blocks in lists if len(blocks.module) == count] or lists
    if len(lists) != 1:
        what = " and ".join(f"{blocks.name} ({len(blocks.module)})" for blocks in lists)
        raise ArchitectureError(
            f"{kind(model)}: {f'{what} could each be the blocks' if lists else 'no list of blocks is to be found'}",
            ': pass $blocks= with {} for the number, for instance $blocks="model.layers.{}"',
        )
    (blocks,) = lists
    return tuple(NamedModule(f"{blocks.name}.{i}", block) for i, block in enumerate(blocks.module))


def find_feed_forward(block: NamedModule[nn.Module], hidden_size: int) -> FeedForward:
    """The FFN of a block.

    Raises:
        ArchitectureError: None of its children, or more than one, can be it; the message says of each why not.
    """
    candidates: list[FeedForward] = []
    obstacles: list[str] = []
    loose: list[LinearMap] = []
    for name, child in block.module.named_children():
        full = f"{block.name}.{name}"
        if (own := as_linear_map(full, child)) is not None:
            loose.append(own)
        elif not attends(child) and next(child.children(), None) is not None:
            result = feed_forward(full, child, hidden_size)
            if isinstance(result, FeedForward):
                candidates.append(result)
            else:
                obstacles.append(f"{full} ({kind(child)}) {result}")
    if not candidates and not obstacles and isinstance(parts := _of_maps(loose, hidden_size), tuple):
        return FeedForward(block.name, block.module, *parts, loose=True)
    if len(candidates) > 1:
        candidates = [each for each in candidates if each.down.d_in >= hidden_size] or candidates
    if len(candidates) == 1:
        return candidates[0]
    why = "; ".join(obstacles) or "no child looks like an FFN"
    if candidates:
        why = f"{_either(candidates)} could each be its FFN"
    number = block.name.rpartition(".")[2]
    raise ArchitectureError(
        f"{block.name} ({kind(block.module)}): {why}",
        ". Pass what to edit by hand: $ffn= and $down= with {} for the number of the block, for instance "
        f"$ffn={block.name.removesuffix(number) + '{}.mlp'!r}; for R-SFT, $modules=",
    )


def feed_forward(name: str, module: nn.Module, hidden_size: int) -> FeedForward | str:
    """The module as an FFN, or why it is none."""
    if _is_mixture(module, hidden_size):
        return "is a mixture of experts, which has no one FFN"
    if any(isinstance(part, nn.ModuleList) for part in module.modules()):
        return "holds a list of modules, of which none is the one FFN"
    parts = _of_maps(_linear_maps(name, module), hidden_size)
    return parts if isinstance(parts, str) else FeedForward(name, module, *parts)


def _is_mixture(module: nn.Module, hidden_size: int) -> bool:
    """Transformers keeps experts as one parameter of three axes, other code as a list of FFNs."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    return bool(expert_parameters(module, hidden_size)) or any(
        isinstance(feed_forward("", each, hidden_size), FeedForward) for part in lists for each in part
    )


def _linear_maps(name: str, module: nn.Module) -> list[LinearMap]:
    named = ((f"{name}.{part_name}".rstrip("."), part) for part_name, part in module.named_modules())
    return [linear for full, part in named if (linear := as_linear_map(full, part)) is not None]


def _of_maps(maps: Sequence[LinearMap], hidden_size: int) -> tuple[tuple[LinearMap, ...], LinearMap] | str:
    """The maps up and the one down, or why they are no FFN's."""
    if len(maps) not in (2, 3):
        return f"has {len(maps)} linear map{'' if len(maps) == 1 else 's'}, an FFN has two or three"
    *up, down = maps
    inner = [down.d_in] if len(up) == 2 else [down.d_in, 2 * down.d_in]
    if down.d_out != hidden_size or any(linear.d_in != hidden_size or linear.d_out not in inner for linear in up):
        shapes = ", ".join(f"{linear.d_in} to {linear.d_out}" for linear in maps)
        return f"maps {shapes}: not from the hidden width {hidden_size} to another and back"
    return tuple(up), down


def expert_parameters(module: nn.Module, hidden_size: int) -> list[tuple[str, nn.Parameter]]:
    """Its parameters of three axes, one of the last two being the hidden width, by name, but those of convolutions."""
    convolutions = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        for parameter in part.parameters()
    }
    return [
        (name, each)
        for name, each in module.named_parameters()
        if each.dim() == 3 and each.shape[0] > 1 and hidden_size in each.shape[1:] and id(each) not in convolutions
    ]


def find_norm(model: nn.Module, blocks: Sequence[NamedModule[nn.Module]], hidden_size: int) -> NamedModule[nn.Module]:
    """The norm between the last block and the head.

    Raises:
        ArchitectureError: None, or more than one, can be it.
    """
    candidates = _norms_beside(model, blocks, hidden_size)
    if len(candidates) != 1:
        raise ArchitectureError(
            f"{kind(model)}: {_either(candidates) or 'no module beside the blocks'} looks like the final norm",
            ': pass $norm=, for instance $norm="model.norm"',
        )
    return candidates[0]


def _norms_beside(
    model: nn.Module, blocks: Sequence[NamedModule[nn.Module]], hidden_size: int
) -> list[NamedModule[nn.Module]]:
    list_name = blocks[0].name.rpartition(".")[0]
    parent_name = list_name.rpartition(".")[0]
    before: list[NamedModule[nn.Module]] = []
    after: list[NamedModule[nn.Module]] = []
    seen = False
    for name, child in model.get_submodule(parent_name).named_children():
        full = f"{parent_name}.{name}".lstrip(".")
        if full == list_name:
            seen = True
        # OLMo's has no weights, and says its shape as layer norms do.
        shapes = [tuple(each.shape) for each in child.parameters()] or [tuple(getattr(child, "normalized_shape", ()))]
        if set(shapes) == {(hidden_size,)} and next(child.children(), None) is None:
            (after if seen else before).append(NamedModule(full, child))
    # OPT registers its final norm before its blocks, Bloom a norm of the embedding; the order of registration decides
    # only where both are there.
    return after or before


def ask_model(model: nn.Module, method: str) -> nn.Module | None:
    """What a method of transformers' models gives, ``None`` where there is no such method."""
    function: Any = getattr(model, method, None)
    return function() if function is not None else None


def kind(module: object) -> str:
    """The name of its class."""
    return type(module).__name__


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


def attends(module: nn.Module) -> bool:
    """Whether its forward sees an attention mask."""
    return "attention_mask" in inspect.signature(type(module).forward).parameters


def _either(modules: Sequence[NamedModule[nn.Module]]) -> str:
    return " or ".join(module.name for module in modules)
