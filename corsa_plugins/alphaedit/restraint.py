"""What is put into the weights where it is not the plain sum of the updates: RECT's, PRUNE's and SPHERE's.

An edit state keeps the updates as they were solved for, and the weights are computed from those that are in force, so
that any of them can be taken out again, in any order, although RECT's and PRUNE's rules are not linear in them.

Of a mixture's routed experts, which lie side by side in one map, each is a weight of its own to a rule, as it is to the
tokens that take it: RECT keeps its share of every expert's elements, PRUNE goes by the largest singular value of each,
and SPHERE by the rows of each. Of all of them as one weight, RECT would keep the whole of an update that few experts
have a part in, PRUNE would hold each by what the others are, and SPHERE would write to experts that no edited token
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from corsa_plugins.alphaedit.weights import Factors, write_weight
from corsa_plugins.model.architecture import LinearMap
from corsa_plugins.settings import Settings, Share

__all__ = ["Restrained", "RestraintSettings", "restrain", "restrained_factors", "write_restrained"]

Rule = Literal["relative_change", "singular_values", "principal_directions"]

EPSILON = 1e-8
"""Beside |W| where a change is relative to it, as in the published code."""


@dataclass(frozen=True)
class RestraintSettings(Settings):
    """What is put into the weights in place of the sum of the updates.

    Attributes:
        rule: ``"relative_change"``: of each batch's update the elements that change most for what is there, by
            |Delta| / |W|, the others not at all: RECT (Gu et al. 2024). W are the weights from before any edit, where
            the published code has those from before the batch: the batches do not hang on each other then.
            ``"singular_values"``: the updates of all batches in force together, with every singular value s over the
            largest of the weights from before any edit, s_0, brought down to s_0 + log(s / s_0): PRUNE (Ma et al.
            2025). ``"principal_directions"``: each update times I - strength * U U^T, where U are the directions in
            which the rows of the weights from before any edit, each of length 1, point most, up to ``energy`` of the
            sum of all their squared lengths: SPHERE (Liu et al. 2026). Its code takes the weights as they are.
        share: Of the elements of an update that RECT keeps: the published 40 %.
        base: Of PRUNE's logarithm; the larger, the more is held back. The paper's 1.2.
        energy: SPHERE's cumulative ratio, eta.
        strength: SPHERE's alpha: what is taken away of an update along its principal directions.
    """

    rule: Rule
    share: Annotated[float, Field(gt=0, le=1)] = 0.4
    base: Annotated[float, Field(gt=1)] = 1.2
    energy: Annotated[float, Field(gt=0, le=1)] = 0.5
    strength: Share = 0.5

    @property
    def linear(self) -> bool:
        """Whether what is put into the weights is a sum of what each update gives by itself, of no higher rank."""
        return self.rule == "principal_directions"


class Restrained(NamedTuple):
    """What to put into the weights.

    Attributes:
        factors: Products to add.
        dense: Matrices (d_out, d_in) to add, float64.
    """

    factors: list[Factors]
    dense: list[Tensor]


class _Product(NamedTuple):
    left: Tensor
    right: Tensor


@torch.no_grad()
def write_restrained(
    linear: LinearMap, original: Tensor, updates: Sequence[tuple[Factors, RestraintSettings | None]]
) -> None:
    """Put ``original`` and what is made of the updates into a linear map; one expert after the other, if it is several
    and there is a restraint.

    Args:
        linear: Whose weight is written.
        original: W0, (d_out, d_in), or what :func:`~corsa_plugins.alphaedit.weights.original_of` gave.
        updates: In the order they were made, each with what restrains it.

    Raises:
        SettingError: The weight is quantised, and what is left of an update is no product.
    """
    if linear.experts == 1 or all(rule is None for _, rule in updates):
        _write(linear, original, updates)
        return
    for one, columns in linear.apart():
        of_one = ((_Product(update.left, update.right[columns]), rule) for update, rule in updates)
        # most have no part in most updates, and a decomposition of each for nothing would take its time
        _write(one, original[:, columns], [(update, rule) for update, rule in of_one if bool(update.right.any())])


def _write(linear: LinearMap, original: Tensor, updates: Sequence[tuple[Factors, RestraintSettings | None]]) -> None:
    plain: list[Factors] = [update for update, rule in updates if rule is None]
    dense: list[Tensor] = []
    for rule in dict.fromkeys(rule for _, rule in updates if rule is not None):
        there = original.to(linear.parameter.device)
        restrained = restrain(rule, there, [update for update, own in updates if own == rule])
        plain += restrained.factors
        dense += restrained.dense
    write_weight(linear, original, plain, dense)


def restrained_factors(settings: RestraintSettings, original: Tensor, update: Factors, experts: int = 1) -> Factors:
    """What a linear rule makes of an update, of the same rank and with the same left factor.

    Args:
        settings: The rule.
        original: W0, (d_out, d_in).
        update: Of one batch.
        experts: How many maps lie side by side in W0.
    """
    sides = []
    for weight, right in zip(original.chunk(experts, dim=1), update.right.chunk(experts), strict=True):
        if bool(right.any()):
            (one,) = restrain(settings, weight, [_Product(update.left, right)]).factors
            right = one.right
        sides.append(right.double())
    return _Product(update.left.double(), torch.cat(sides))


def restrain(settings: RestraintSettings, original: Tensor, updates: Sequence[Factors]) -> Restrained:
    """What the rule makes of the updates.

    Args:
        settings: The rule.
        original: W0, (d_out, d_in), on the device to compute on.
        updates: Of every batch that the rule is for, in their order; at least one.
    """
    moved = [_Product(*(part.to(original.device) for part in (u.left, u.right))) for u in updates]
    return _RULES[settings.rule](settings, original, moved)


def _by_relative_change(settings: RestraintSettings, original: Tensor, updates: Sequence[_Product]) -> Restrained:
    """RECT: each update with the elements of the smallest |Delta| / |W| left out."""
    scale = original.double().abs() + EPSILON
    dense = []
    for update in updates:
        delta = _exact(update.left) @ _exact(update.right).T
        change = delta.abs() / scale
        left_out = int(change.numel() * (1 - settings.share))
        if left_out:
            least = torch.kthvalue(change.flatten(), left_out + 1).values
            delta = torch.where(change >= least, delta, 0.0)
        dense.append(delta)
    return Restrained([], dense)


def _by_singular_values(settings: RestraintSettings, original: Tensor, updates: Sequence[_Product]) -> Restrained:
    """PRUNE: the sum of the updates, less what its largest singular values have too much."""
    sums = list[Factors](updates)
    left, right = (torch.cat(parts, dim=1).double() for parts in zip(*updates, strict=True))
    # of the rank of the updates, and never of the width of the weights
    (left, inner), (right, outer) = (torch.linalg.qr(part) for part in (left, right))
    vectors, values, others = torch.linalg.svd(inner @ outer.T, full_matrices=False)
    if float(values[0]) <= _at_least(original):
        return Restrained(sums, [])
    limit = largest_singular_value(original)
    over = values > limit
    if not bool(over.any()):
        return Restrained(sums, [])
    restrained = limit + (values[over] / limit).log() / log(settings.base)
    # a logarithm to a base near 1 grows faster than s where that is just over the limit: nothing is made larger
    excess = (values[over] - restrained).clamp(min=0.0)
    return Restrained([*sums, _Product(-(left @ vectors[:, over]) * excess, right @ others[over].T)], [])


def _by_principal_directions(settings: RestraintSettings, original: Tensor, updates: Sequence[_Product]) -> Restrained:
    """SPHERE: each update, less a part of it along the directions in which the weights point most."""
    main = principal_directions(original, settings.energy)
    projected = []
    for update in updates:
        right = _exact(update.right)
        projected.append(_Product(update.left.double(), right - settings.strength * main @ (main.T @ right)))
    return Restrained(list[Factors](projected), [])


def principal_directions(matrix: Tensor, energy: float) -> Tensor:
    """Of a weight (d_out, d_in): U, (d_in, r) float64, orthonormal.

    They are the first eigenvectors of sum_i w_i w_i^T / ||w_i||^2 over its rows w_i, the published one more than have
    ``energy`` of its trace. They are found by the smaller of the two Gram matrices of the rows.
    """
    rows = matrix.double()
    rows = rows / (rows.norm(dim=1, keepdim=True) + EPSILON)
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum().clamp(min=EPSILON)
    count = int((shares <= energy).sum()) + 1
    kept = values[:count] > values[0] * EPSILON  # others have no direction in the smaller one
    main = vectors[:, :count][:, kept]
    return rows.T @ main / values[:count][kept].sqrt() if wide else main


def largest_singular_value(matrix: Tensor) -> float:
    """Of a weight; by the smaller of its two Gram matrices, which is exact for the largest one."""
    exact = _exact(matrix)
    gram = exact @ exact.T if exact.shape[0] <= exact.shape[1] else exact.T @ exact
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0).sqrt())


def _exact(tensor: Tensor) -> Tensor:
    """A copy in float64: products of what was read from a file, and lies in memory as it lay there, are rounded
    otherwise, and a state that was saved would give other weights."""
    return tensor.to(torch.float64, copy=True)


def _at_least(matrix: Tensor) -> float:
    """What its largest singular value is at least; no decomposition."""
    exact = matrix.double()
    return float(torch.maximum(exact.norm(dim=0).max(), exact.norm(dim=1).max()))


_RULES: Mapping[Rule, Callable[[RestraintSettings, Tensor, Sequence[_Product]], Restrained]] = {
    "relative_change": _by_relative_change,
    "singular_values": _by_singular_values,
    "principal_directions": _by_principal_directions,
}
