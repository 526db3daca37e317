"""By what a decoder's parts are told: from how the model is built, never from what it is called.

* blocks: the one outermost ``nn.ModuleList`` of the text decoder;
* FFN: the one child of a block that sees no attention mask and is made of two or three linear maps, one or two from
  the hidden width to an inner width and one, the last, back; a gate and an up map may be one map of twice the width;
* final norm: the one sibling of the blocks, after them if there is one, made of vectors of the hidden width.

Where a rule finds nothing, or more than one, the model is refused rather than guessed at, with what to pass by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from corsa_plugins.model.parts import ArchitectureError, FeedForward, NamedModule, as_linear_map

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
    lists = [NamedModule(names.get(id(blocks), ""), blocks) for blocks in _outermost_lists(decoder)]
    if len(lists) > 1:
        count = getattr(_text_config(model), "num_hidden_layers", None)
        lists = [blocks for blocks in lists if len(blocks.module) == count] or lists
    if len(lists) != 1:
        what = " and ".join(f"{blocks.name} ({len(blocks.module)})" for blocks in lists)
        raise ArchitectureError(
            f"{kind(model)}: {f'{what} could each be the blocks' if lists else 'no list of blocks is to be found'}: "
            'pass blocks= with {} for the number, for instance blocks="model.layers.{}"'
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
    for name, child in block.module.named_children():
        if attends(child) or next(child.children(), None) is None:
            continue
        result = feed_forward(f"{block.name}.{name}", child, hidden_size)
        if isinstance(result, FeedForward):
            candidates.append(result)
        else:
            obstacles.append(f"{block.name}.{name} ({kind(child)}) {result}")
    if len(candidates) == 1:
        return candidates[0]
    why = "; ".join(obstacles) or "no child looks like an FFN"
    if candidates:
        why = f"{_either(candidates)} could each be its FFN"
    number = block.name.rpartition(".")[2]
    raise ArchitectureError(
        f"{block.name} ({kind(block.module)}): {why}. Pass what to edit by hand: ffn= and down= with {{}} for the "
        f"number of the block, for instance ffn={block.name.removesuffix(number) + '{}.mlp'!r}; for R-SFT, modules="
    )


def feed_forward(name: str, module: nn.Module, hidden_size: int) -> FeedForward | str:
    """The module as an FFN, or why it is none."""
    # Transformers keeps experts as one parameter of three axes, other code as a list of modules.
    if any(isinstance(part, nn.ModuleList) for part in module.modules()) or expert_parameters(module):
        return "is a mixture of experts, which has no one FFN"
    maps = [
        linear
        for part_name, part in module.named_modules()
        if (linear := as_linear_map(f"{name}.{part_name}", part)) is not None
    ]
    if len(maps) not in (2, 3):
        return f"has {len(maps)} linear maps, an FFN has two or three"
    *up, down = maps
    inner = [down.d_in] if len(up) == 2 else [down.d_in, 2 * down.d_in]
    if down.d_out != hidden_size or any(linear.d_in != hidden_size or linear.d_out not in inner for linear in up):
        shapes = ", ".join(f"{linear.d_in} to {linear.d_out}" for linear in maps)
        return f"maps {shapes}: not from the hidden width {hidden_size} to another and back"
    return FeedForward(name, module, tuple(up), down)


def expert_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Its parameters of three axes, by name, but those of convolutions."""
    convolutions = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        for parameter in part.parameters()
    }
    named = module.named_parameters()
    return [(name, each) for name, each in named if each.dim() == 3 and id(each) not in convolutions]


def find_norm(model: nn.Module, blocks: Sequence[NamedModule[nn.Module]], hidden_size: int) -> NamedModule[nn.Module]:
    """The norm between the last block and the head.

    Raises:
        ArchitectureError: None, or more than one, can be it.
    """
    candidates = _norms_beside(model, blocks, hidden_size)
    if len(candidates) != 1:
        raise ArchitectureError(
            f"{kind(model)}: {_either(candidates) or 'no module beside the blocks'} looks like the final norm: "
            'pass norm=, for instance norm="model.norm"'
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
        shapes = [tuple(parameter.shape) for parameter in child.parameters()]
        if shapes and all(shape == (hidden_size,) for shape in shapes) and next(child.children(), None) is None:
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
