"""The mixture of experts of a block: routed experts, one that all tokens share, and what routes, told by structure.

Transformers keeps routed experts as parameters of three axes, (experts, out, in) or (experts, in, out), one or two from
the hidden width to an inner width and one, the last, back; other code keeps a list of FFNs. What maps the hidden width
to one number for each expert routes; what maps it to one number weighs the shared expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from corsa_plugins.model.parts import FeedForward, NamedModule
from corsa_plugins.model.structure import attends, expert_parameters, feed_forward

__all__ = ["FusedExperts", "Mixture", "find_mixture"]


@dataclass(frozen=True)
class FusedExperts:
    """Routed experts whose weights are parameters of three axes.

    Attributes:
        name: Of the module that holds the parameters.
        module: It.
        count: E, how many experts.
        up: Names of the parameters that map to the inner width; a gate is among them.
        down: Name of the parameter that maps back.
        d_in: Inner width of one expert: features of its keys.
        d_out: The hidden width.
        transposed: Whether ``down`` is stored as (E, d_in, d_out), and not as (E, d_out, d_in).
    """

    name: str
    module: nn.Module
    count: int
    up: tuple[str, ...]
    down: str
    d_in: int
    d_out: int
    transposed: bool

    @property
    def weights(self) -> Tensor:
        """W of every expert, (E, d_out, d_in), a view of the parameter."""
        parameter: Tensor = self.module.get_parameter(self.down.removeprefix(f"{self.name}."))
        return parameter.mT if self.transposed else parameter


@dataclass(frozen=True)
class Mixture(NamedModule[nn.Module]):
    """The mixture of experts of one block.

    Attributes:
        count: How many routed experts there are.
        fused: They, where their weights are parameters of three axes that can be told apart.
        listed: They, where each is an FFN of its own.
        shared: The FFN that every token takes beside them, if there is one.
        routers: Modules that say which experts a token takes, or how much of the shared one.
    """

    count: int = 0
    fused: FusedExperts | None = None
    listed: tuple[FeedForward, ...] = ()
    shared: FeedForward | None = None
    routers: tuple[NamedModule[nn.Module], ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fused weights, up and down."""
        return () if self.fused is None else (*self.fused.up, self.fused.down)

    @property
    def routed(self) -> tuple[str, ...]:
        """Names of the modules that hold the routed experts and nothing else; empty where they cannot be told."""
        return (self.fused.name,) if self.fused is not None else tuple(each.name for each in self.listed)

    def __str__(self) -> str:
        kept = self.fused.down if self.fused is not None else f"{self.count} FFNs in a list" if self.listed else "?"
        shared = f", and {self.shared.name} for every token" if self.shared is not None else ""
        return f"{self.name}: {self.count} routed experts ({kept}){shared}"


def find_mixture(block: NamedModule[nn.Module], hidden_size: int) -> Mixture | None:
    """The mixture of experts of a block; ``None`` where it has none."""
    for child_name, child in block.module.named_children():
        if attends(child):
            continue
        name = f"{block.name}.{child_name}"
        fused, count = _fused(name, child, hidden_size)
        listed = () if count else _listed(name, child, hidden_size)
        if not count and not listed:
            continue
        held = fused.module if fused is not None else child
        shared = _shared(name, child, held, listed, hidden_size)
        if shared is None:  # some blocks have it beside the mixture
            shared = _beside(block, child, hidden_size)
        count = count or len(listed)
        known = [part.module for part in (*listed, *((shared,) if shared is not None else ()))]
        routers = tuple(_routers(block, child, known, count, hidden_size))
        return Mixture(name, child, count, fused, listed, shared, routers)
    return None


def _fused(name: str, module: nn.Module, hidden_size: int) -> tuple[FusedExperts | None, int]:
    """The fused experts in a module, and how many there are; the number alone where their weights are of a kind that is
    not known."""
    weights = expert_parameters(module, hidden_size)
    if not weights:
        return None, 0
    *up, (down_name, down) = weights
    count, first, second = down.shape
    # A square one is told by the map up, of twice the width where gate and up are one.
    up_shapes = [tuple(weight.shape) for _, weight in up]
    if first == second == hidden_size:
        transposed = (count, hidden_size, 2 * hidden_size) in up_shapes
        inner = hidden_size
        if not transposed and (count, 2 * hidden_size, hidden_size) not in up_shapes:
            return None, count
    else:
        transposed = second == hidden_size
        inner = first if transposed else second
    to_inner = {(hidden_size, inner), (hidden_size, 2 * inner)}
    right = {(count, *(shape if transposed else shape[::-1])) for shape in to_inner}
    if hidden_size not in (first, second) or not 1 <= len(up) <= 2 or not set(up_shapes) <= right:
        return None, count
    holder = down_name.rpartition(".")[0]
    full = f"{name}.{holder}".rstrip(".")
    names = tuple(f"{name}.{up_name}" for up_name, _ in up)
    experts = module.get_submodule(holder)
    return FusedExperts(full, experts, count, names, f"{name}.{down_name}", inner, hidden_size, transposed), count


def _listed(name: str, module: nn.Module, hidden_size: int) -> tuple[FeedForward, ...]:
    """Experts that are FFNs in a list."""
    for list_name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            full = f"{name}.{list_name}".rstrip(".")
            found = [feed_forward(f"{full}.{index}", each, hidden_size) for index, each in enumerate(part)]
            fitting = tuple(each for each in found if isinstance(each, FeedForward))
            if len(fitting) == len(found):
                return fitting
    return ()


def _shared(
    name: str, module: nn.Module, held: nn.Module, listed: Sequence[FeedForward], hidden_size: int
) -> FeedForward | None:
    """The one FFN in the mixture's module that is none of its routed experts."""
    routed = {id(part) for expert in listed for part in expert.module.modules()}
    found: list[FeedForward] = []
    for part_name, part in module.named_modules():
        if part is module or part is held or id(part) in routed or next(part.children(), None) is None:
            continue
        fitting = feed_forward(f"{name}.{part_name}", part, hidden_size)
        if isinstance(fitting, FeedForward):
            found.append(fitting)
    return found[0] if len(found) == 1 else None


def _beside(block: NamedModule[nn.Module], mixture: nn.Module, hidden_size: int) -> FeedForward | None:
    found = [
        fitting
        for name, child in block.module.named_children()
        if child is not mixture and not attends(child) and next(child.children(), None) is not None
        if isinstance(fitting := feed_forward(f"{block.name}.{name}", child, hidden_size), FeedForward)
    ]
    return found[0] if len(found) == 1 else None


def _routers(
    block: NamedModule[nn.Module], mixture: nn.Module, known: Sequence[nn.Module], count: int, hidden_size: int
) -> Iterator[NamedModule[nn.Module]]:
    others = {id(part) for module in known for part in module.modules()}
    inside = {id(part) for part in mixture.modules()}
    others |= {id(part) for child in block.module.children() if attends(child) for part in child.modules()}
    for name, module in block.module.named_modules():
        weight: Any = getattr(module, "weight", None)
        if id(module) in others or not isinstance(weight, nn.Parameter):
            continue
        shape = tuple(weight.shape)
        if shape == (count, hidden_size) or (shape == (1, hidden_size) and id(module) in inside):
            yield NamedModule(f"{block.name}.{name}", module)
