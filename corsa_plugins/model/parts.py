"""The parts of a decoder as values: a module with its name, a linear map whichever way it is stored, an FFN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Template
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from corsa_plugins.errors import CorsaError
from corsa_plugins.model.placement import tensor_of
from corsa_plugins.model.quantised import is_quantised

__all__ = ["ArchitectureError", "FeedForward", "LinearMap", "NamedModule", "as_linear_map"]


_ARGUMENTS = ("blocks", "ffn", "down", "norm", "head", "modules")


class ArchitectureError(CorsaError, ValueError):
    """A model whose parts cannot be told apart; the message says which, and what to pass by hand.

    What is passed by hand are the arguments of :func:`corsa_plugins.model.architecture.find_architecture`, ``blocks``,
    ``ffn``, ``down``, ``norm`` and ``head``, and ``modules`` of R-SFT. Who has other names for them says
    :meth:`renamed`.

    Args:
        problem: What cannot be told, or is not there.
        remedy: What to pass. In both, ``$blocks`` and the like stand for the names of arguments.
        names: What arguments are called, where that is something else.
    """

    def __init__(self, problem: str, remedy: str = "", names: Mapping[str, str] | None = None) -> None:
        self.problem, self.remedy = problem, remedy
        called = {**{name: name for name in _ARGUMENTS}, **(names or {})}
        super().__init__(Template(problem + remedy).safe_substitute(called))

    def renamed(self, names: Mapping[str, str], remedy: str | None = None) -> ArchitectureError:
        """The error as it reads where arguments are called otherwise.

        Args:
            names: What they are called.
            remedy: What to do there in place of passing some by hand; by default that.
        """
        return ArchitectureError(self.problem, remedy if remedy and self.remedy else self.remedy, names)


_Module = TypeVar("_Module", bound=nn.Module, covariant=True)


@dataclass(frozen=True)
class NamedModule(Generic[_Module]):
    """A module and its name in the model, as ``model.get_submodule`` takes it."""

    name: str
    module: _Module


@dataclass(frozen=True)
class LinearMap:
    """A linear map, whichever way its weight is stored.

    Attributes:
        name: Of the module in the model.
        module: An ``nn.Linear``, or GPT-2's ``Conv1D``, which stores the transpose; or a quantised map.
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
    def quantised(self) -> bool:
        """Whether there is no weight to read or write: a change goes beside it."""
        return is_quantised(self.module)

    @property
    def weight(self) -> Tensor:
        """W of shape (d_out, d_in), a view of the parameter: writing to it without gradients changes the model.

        Of an offloaded module it is what was read; :func:`corsa_plugins.model.placement.bring_in` comes before writing.
        """
        parameter = self.parameter
        return parameter.t() if self.transposed else parameter

    @property
    def stored(self) -> str:
        """Name of the parameter in the module."""
        return "weight"

    @property
    def parameter(self) -> Tensor:
        """The weight as it is stored; see :attr:`weight`."""
        return tensor_of(self.module, self.stored)

    @property
    def experts(self) -> int:
        """How many maps lie side by side in this one; keys of it are zero but for those of some of them."""
        return 1

    def apart(self) -> Iterator[tuple[LinearMap, slice]]:
        """Each of the maps that lie side by side in this one, and which columns of W are its own."""
        yield self, slice(0, self.d_in)

    @torch.no_grad()
    def write(self, values: Tensor, rows: slice = slice(None)) -> None:
        """Put ``values`` (rows, d_in) into some rows of W, in the precision it is kept in."""
        self.weight[rows] = values.to(self.parameter)


@dataclass(frozen=True)
class FeedForward(NamedModule[nn.Module]):
    """The FFN of one block.

    Attributes:
        up: The maps from the hidden width; a gate is one of them. Empty if the FFN was named by hand and fits no rule.
        down_map: The map back to the hidden width, whose input is the key and whose output the value; see ``down``.
        loose: Whether its maps lie in the block itself, beside the attention: ``name`` and ``module`` are the block's.
    """

    up: tuple[LinearMap, ...] = ()
    down_map: LinearMap | None = None
    loose: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that together are the FFN and nothing else: what trains if the FFN does."""
        return tuple(linear.name for linear in (*self.up, self.down)) if self.loose else (self.name,)

    @property
    def down(self) -> LinearMap:
        """The map back to the hidden width.

        Raises:
            ArchitectureError: The FFN was named by hand and its down map was not.
        """
        if self.down_map is None:
            raise ArchitectureError(
                f"{self.name} is not made as an FFN usually is", ": pass $down=, its last linear map"
            )
        return self.down_map


def as_linear_map(name: str, module: nn.Module) -> LinearMap | None:
    """The module as a linear map, ``None`` if it is none."""
    if isinstance(module, nn.Linear) or is_quantised(module):
        features: Any = module
        return LinearMap(name, module, features.in_features, features.out_features)
    if isinstance(module, Conv1D):
        return LinearMap(name, module, module.nx, module.nf)
    return None
