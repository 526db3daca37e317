"""The routed experts of a block as one linear map: down maps side by side, keys that are weighted by the gates.

A block with E routed experts, of which a token takes some, with weights g_e, puts out::

    sum_e g_e (W_e k_e + b_e) = W kappa + sum_e g_e b_e,     W = [W_1 ... W_E],  kappa = [g_1 k_1; ...; g_E k_E]

with g_e = 0 for an expert that the token does not take. Of W it is a linear map, of a key kappa that is mostly zeros.
The weights g are what the module of the experts is given, whatever a family made them by, and k_e is computed by the
module's own activation. Transformers' experts share one interface (``use_experts_implementation``); of any other it is
not known how a key is made, and they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corsa_plugins.model.experts import FusedExperts
from corsa_plugins.model.parts import ArchitectureError, LinearMap
from corsa_plugins.model.placement import tensor_of

__all__ = ["RoutedExperts", "RoutedKeys", "routed_experts"]

_TRIED = 64
"""Tokens that are run to see whether keys and weights give what the experts put out."""

_SAYS_SO = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
"""What an experts module of transformers' interface says about itself."""


@dataclass(frozen=True)
class RoutedKeys:
    """The keys kappa of some tokens, by expert: of what is not here every element is zero.

    Attributes:
        count: How many tokens.
        experts: E.
        width: Features of one expert's keys; kappa has ``experts * width``.
        parts: For each expert that any of the tokens takes: its number, which tokens (n,), and their keys times their
            weights (n, width), in float32 or wider.
    """

    count: int
    experts: int
    width: int
    parts: tuple[tuple[int, Tensor, Tensor], ...]

    def __len__(self) -> int:
        return self.count

    def chosen(self, tokens: Tensor) -> RoutedKeys:
        """Those of some of the tokens, (n,), none of them twice, in this order."""
        place = torch.full((self.count,), -1, dtype=torch.long)
        place[tokens.cpu()] = torch.arange(len(tokens))
        parts = []
        for expert, own, keys in self.parts:
            there = place.to(own.device)[own]
            wanted = there >= 0
            parts.append((expert, there[wanted], keys[wanted]))
        return RoutedKeys(len(tokens), self.experts, self.width, tuple(parts))

    def dense(self) -> Tensor:
        """kappa, (count, experts * width), zeros and all; float32 where no token takes any expert."""
        like = self.parts[0][2] if self.parts else torch.zeros(0)
        result = like.new_zeros(self.count, self.experts, self.width)
        for expert, tokens, keys in self.parts:
            result[tokens, expert] = keys
        return result.reshape(self.count, self.experts * self.width)

    def finite(self) -> Tensor:
        """Whether all of a token's key is neither NaN nor infinite: (count,) of bool, in main memory."""
        result = torch.ones(self.count, dtype=torch.bool)
        for _, tokens, keys in self.parts:
            result[tokens.cpu()] &= keys.isfinite().all(1).cpu()
        return result


@dataclass(frozen=True)
class RoutedExperts(LinearMap):
    """The down maps of a block's routed experts, side by side.

    ``d_in`` is E times the inner width of one; ``name`` and ``module`` are those of the module that holds the weights.

    Attributes:
        fused: Where the weights are.
    """

    fused: FusedExperts

    @property
    def transposed(self) -> bool:
        return self.fused.transposed

    @property
    def quantised(self) -> bool:
        return False

    @property
    def stored(self) -> str:
        return self.fused.down.removeprefix(f"{self.name}.")

    @property
    def experts(self) -> int:
        return self.fused.count

    @property
    def weight(self) -> Tensor:
        """W, (d_out, d_in); a copy where the experts are stored as (E, d_out, width). See :meth:`write`."""
        return self._by_row().reshape(self.d_out, self.d_in)

    def apart(self) -> Iterator[tuple[LinearMap, slice]]:
        width = self.fused.d_in
        for number in range(self.experts):
            one = _OneExpert(f"{self.name}.{self.stored}[{number}]", self.module, width, self.d_out, self, number)
            yield one, slice(number * width, (number + 1) * width)

    @torch.no_grad()
    def write(self, values: Tensor, rows: slice = slice(None)) -> None:
        target = self._by_row()[rows]
        target.copy_(values.reshape(target.shape))

    def _by_row(self) -> Tensor:
        """(d_out, E, width), a view of the parameter."""
        return self.parameter.permute(2, 0, 1) if self.transposed else self.parameter.permute(1, 0, 2)

    @torch.no_grad()
    def keys(self, args: Sequence[Any], kwargs: Mapping[str, Any], tokens: Tensor | None = None) -> RoutedKeys:
        """kappa of the tokens that the experts' module is called with.

        Args:
            args, kwargs: Of the call: hidden states, and which experts each token takes with which weights.
            tokens: Which of the tokens, all rows being one; by default all.

        Raises:
            ArchitectureError: The module is called with something else.
        """
        hidden, index, weights = self._inputs(args, kwargs)
        if tokens is not None:
            hidden, index, weights = (each[tokens.to(each.device)] for each in (hidden, index, weights))
        parts = []
        for expert in index.unique().tolist():
            if not 0 <= expert < self.experts:  # how a token is marked that takes fewer
                continue
            own, places = (index == expert).nonzero(as_tuple=True)
            key = self._key(expert, hidden[own])
            wide = torch.promote_types(key.dtype, torch.float32)
            parts.append((expert, own, key.to(wide) * weights[own, places, None].to(key.device, wide)))
        return RoutedKeys(len(hidden), self.experts, self.fused.d_in, tuple(parts))

    @torch.no_grad()
    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See, on the first tokens of a call, that W kappa and the biases are what the experts put out.

        Raises:
            ArchitectureError: They are not, naming the module.
        """
        inputs = [each[:_TRIED] for each in self._inputs(args, kwargs)]
        hidden, _, weights = inputs
        module: Any = self.module
        put_out = module.forward(*inputs).reshape(len(hidden), self.d_out).double()
        ours = torch.zeros_like(put_out)
        down = self.parameter.mT if self.transposed else self.parameter
        for expert, own, keys in self.keys(inputs, {}).parts:
            ours[own] += keys.double() @ down[expert].to(keys.device).double().T
            if module.has_bias:
                gates = torch.where(inputs[1][own] == expert, weights[own], 0.0).sum(1, dtype=torch.float64)
                bias = tensor_of(module, f"{self.stored}_bias")[expert]
                ours[own] += gates[:, None].to(ours) * bias.to(ours)
        tolerance = max(4 * torch.finfo(hidden.dtype).eps, 1e-4)  # half precision rounds each product and the sum
        distance, scale = float((ours - put_out).norm()), float(put_out.norm())
        if not distance <= tolerance * scale:
            raise ArchitectureError(
                f"{self.name} ({type(module).__name__}) puts out another thing than its down maps make of its keys: "
                f"they differ by {distance / max(scale, 1e-300):.1e} of it. Its routed experts cannot be edited",
                "; name another FFN by hand, $ffn= and $down=",
            )

    def _inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (tokens, hidden), which experts (tokens, taken), with which weights."""
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        if len(given) == 3:
            hidden, index, weights = given
            hidden = hidden.reshape(-1, hidden.shape[-1])
            routed = not index.is_floating_point() and index.dim() == 2 and index.shape == weights.shape
            if routed and len(hidden) == len(index) and hidden.shape[1] == self.d_out:
                return hidden, index, weights
        raise ArchitectureError(
            f"{self.name} ({type(self.module).__name__}) is called with {[tuple(each.shape) for each in given]}, and "
            "not with hidden states, the experts that each token takes, and their weights: its routed experts cannot "
            "be edited"
        )

    def _key(self, expert: int, hidden: Tensor) -> Tensor:
        """k_e of some tokens, (n, width), by the module's own activation."""
        module: Any = self.module
        (name,) = (each.removeprefix(f"{self.name}.") for each in self.fused.up)
        up = tensor_of(module, name)[expert].to(hidden.device)
        inner = hidden @ (up if self.transposed else up.T)
        if module.has_bias:
            inner = inner + tensor_of(module, f"{name}_bias")[expert].to(hidden.device)
        key: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        return key


@dataclass(frozen=True)
class _OneExpert(LinearMap):
    """The down map of one of them; ``name`` is no module's, and ``module`` is that of all."""

    among: RoutedExperts
    number: int

    @property
    def transposed(self) -> bool:
        return self.among.transposed

    @property
    def quantised(self) -> bool:
        return False

    @property
    def stored(self) -> str:
        return self.among.stored

    @property
    def parameter(self) -> Tensor:
        return self.among.parameter[self.number]


def routed_experts(fused: FusedExperts) -> RoutedExperts:
    """Routed experts as a linear map.

    Raises:
        ArchitectureError: They are kept, or computed, in a way that is not known.
    """
    module: Any = fused.module
    what = f"{fused.name} ({type(module).__name__})"
    if any(not hasattr(module, name) for name in _SAYS_SO):
        raise ArchitectureError(
            f"{what}: routed experts are edited where they have transformers' interface of experts, and these do not"
        )
    if getattr(module, "has_post_expert_norm", False):  # since transformers 5.20, and with none before
        raise ArchitectureError(f"{what}: a norm stands behind each expert, and an edit of its weight would be undone")
    if len(fused.up) != 1 or bool(module.is_transposed) != fused.transposed:
        raise ArchitectureError(f"{what}: {', '.join(fused.up)} and {fused.down} are not kept as it says")
    parameter = tensor_of(module, fused.down.removeprefix(f"{fused.name}."))
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        raise ArchitectureError(
            f"{what}: {fused.down} is kept as {str(parameter.dtype).removeprefix('torch.')}, and routed experts are "
            "edited in their own weights: load the model in bfloat16 or float32"
        )
    return RoutedExperts(fused.name, module, fused.count * fused.d_in, fused.d_out, fused)
