"""Bases side by side are the eigenbasis of the block-diagonal moment, and spare what the moment in full spares."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, decompose
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.solver.side_by_side import SideBySide

E, F, D = 3, 5, 15


def keys(count: int = 40) -> Tensor:
    """(D, count): of each, one expert's part is zero, and some directions of every expert are never seen."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(E, F, 3, generator=generator, dtype=torch.float64)
    kept = torch.einsum("efr,ern->efn", parts, torch.randn(E, 3, count, generator=generator, dtype=torch.float64))
    kept[torch.arange(count) % E, :, torch.arange(count)] = 0
    return kept.reshape(D, count)


def of_parts(full: Tensor) -> SideBySide:
    return SideBySide.of([decompose(full[i * F : (i + 1) * F, i * F : (i + 1) * F]) for i in range(E)])


def test_is_the_eigenbasis_of_the_blocks() -> None:
    full = keys() @ keys().T / 40
    basis = of_parts(full)
    blocks = torch.block_diag(*(full[i * F : (i + 1) * F, i * F : (i + 1) * F] for i in range(E)))
    rows = basis.vectors.rows(0, D)
    torch.testing.assert_close(rows @ rows.T, torch.eye(D, dtype=torch.float64))
    torch.testing.assert_close(rows.T @ basis.values.diag() @ rows, blocks)
    assert bool((basis.values.diff() >= 0).all())
    # of each vector the moment in full has the same mean square
    torch.testing.assert_close(torch.einsum("ud,de,ue->u", rows, full, rows), basis.values)


def test_reads_by_expert_what_the_whole_matrix_gives() -> None:
    basis = of_parts(keys() @ keys().T / 40)
    plain = Eigenbasis(basis.values, basis.vectors)
    some = keys()[:, :4]
    some[F : 2 * F] = 0
    for n in (1, 7, D):
        torch.testing.assert_close(basis.coordinates(some, n), plain.coordinates(some, n))
        coefficients = torch.randn(n, 2, dtype=torch.float64)
        torch.testing.assert_close(basis.combine(coefficients), plain.combine(coefficients))
    space = NullSpace.from_basis(basis, NullSpaceRule("share", 0.4))
    torch.testing.assert_close(space.combine(space.coordinates(some)), some)


def test_what_is_in_the_null_space_is_in_that_of_the_moment_in_full() -> None:
    full = keys() @ keys().T / 40
    space = NullSpace.from_basis(of_parts(full), NullSpaceRule("threshold", 1e-9))
    written = space.combine(torch.eye(space.n_null, dtype=torch.float64))
    assert space.n_null == E * 2
    assert float((written.T @ keys()).abs().max()) < 1e-9


def test_of_experts_without_keys_nothing_is_read() -> None:
    class Unread:
        def rows(self, start: int, stop: int) -> Tensor:
            raise AssertionError("read")

    basis = of_parts(keys() @ keys().T / 40)
    parts = [basis.parts[0], replace(basis.parts[1], vectors=Unread()), basis.parts[2]]
    guarded = replace(SideBySide.of(parts), order=basis.order)
    some = keys()[:, :2]
    some[F : 2 * F] = 0
    torch.testing.assert_close(guarded.combine(guarded.coordinates(some, D)), some)
