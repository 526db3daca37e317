"""The null space: AlphaEdit's projector, without ever forming it."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from corsa_plugins.alphaedit.solver import eigenbasis
from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, FileVectors, MomentError, decompose
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceError, NullSpaceRule
from corsa_plugins.errors import SettingError

few = settings(max_examples=20, deadline=None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def preserved(d: int, rank: int, n: int = 200, seed: int = 0) -> Tensor:
    """Keys (d, n) that reach ``rank`` directions only."""
    return random(d, rank, seed=seed) @ random(rank, n, seed=seed + 1)


def projector(space: NullSpace) -> Tensor:
    identity = torch.eye(space.d, dtype=torch.float64)
    return space.combine(space.coordinates(identity)[: space.n_null])


@few
@given(d=st.integers(2, 40), share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_it_is_the_papers_projector(d, share, seed):
    rank = max(1, min(d - 1, round(share * d)))
    keys = preserved(d, rank, seed=seed)
    # As the paper has it: U of the singular value decomposition of K0 K0^T, its columns with singular value zero.
    left, singular, _ = torch.linalg.svd(keys @ keys.mT)
    null = left[:, singular < 1e-8 * singular[0]]
    moment = keys @ keys.mT / keys.shape[1]
    space = NullSpace.from_moment(moment, NullSpaceRule("threshold", 1e-9 * float(moment.trace())))
    assert space.n_null == d - rank == null.shape[1]
    assert torch.allclose(projector(space), null @ null.mT, atol=1e-6)
    assert torch.allclose(projector(space) @ keys, torch.zeros_like(keys), atol=1e-5)


@few
@given(d=st.integers(1, 40), n=st.integers(0, 7), block=st.integers(1, 50), seed=st.integers(0, 1000))
def test_coordinates_and_combinations_are_inverse_and_block_by_block(d, n, block, seed):
    keys = random(d, n, seed=seed)
    moment = preserved(d, d, seed=seed)
    space = NullSpace(decompose(moment @ moment.mT), d)
    before, eigenbasis.BLOCK = eigenbasis.BLOCK, block
    try:
        coordinates = space.coordinates(keys)
        assert torch.allclose(space.combine(coordinates), keys, atol=1e-10)
        some = max(1, d // 2)
        assert torch.allclose(space.coordinates(keys, some), coordinates[:some], atol=1e-12)
    finally:
        eigenbasis.BLOCK = before
    whole = space.basis.vectors.rows(0, d)
    assert torch.allclose(coordinates, whole @ keys, atol=1e-10)
    assert torch.allclose(space.combine(coordinates[:some]), whole[:some].mT @ coordinates[:some], atol=1e-10)


def test_a_file_serves_as_well_as_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(eigenbasis, "BLOCK", 7)
    basis = decompose(preserved(40, 40) @ preserved(40, 40).mT)
    path = tmp_path / "eigen.safetensors"
    save_file({"eigenvectors": basis.vectors.rows(0, 40)}, path)
    memory = NullSpace(basis, 10)
    file = NullSpace(Eigenbasis(basis.values, FileVectors(path, "eigenvectors")), 10)
    keys = random(40, 3).float()
    assert torch.equal(memory.coordinates(keys), file.coordinates(keys))
    assert torch.equal(memory.combine(keys[:23]), file.combine(keys[:23]))
    assert memory.coordinates(keys).dtype == torch.float64


def test_eigenvalues_are_the_mean_squares_of_coordinates():
    keys = preserved(30, 20)
    space = NullSpace.from_moment(keys @ keys.mT / 200, NullSpaceRule("energy", 0.1))
    assert torch.allclose(space.coordinates(keys).square().mean(1), space.eigenvalues, atol=1e-9)
    through = space.coordinates(keys)[: space.n_null].square().sum() / keys.square().sum()
    assert space.energy == pytest.approx(float(through), rel=1e-6)
    assert space.energy <= 0.1
    assert space.share == space.n_null / 30


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (NullSpaceRule("threshold", 1.0), 1),
        (NullSpaceRule("threshold", 3.5), 3),
        (NullSpaceRule("share", 0.5), 2),
        (NullSpaceRule("share", 1.0), 4),
        (NullSpaceRule("energy", 0.3), 2),
        (NullSpaceRule("energy", 0.29), 1),
        (NullSpaceRule("energy", 1.0), 4),
    ],
)
def test_rules_count_as_they_say(rule, count):
    assert rule.count(torch.tensor([0.0, 3.0, 3.0, 4.0], dtype=torch.float64)) == count


def test_a_rule_that_keeps_nothing_says_what_would():
    moment = torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64))
    with pytest.raises(NullSpaceError) as caught:
        NullSpace.from_moment(moment, what="layer 4")
    message = str(caught.value)
    assert "layer 4 is empty with eigenvalues under 0.02: the eigenvalues run from 1 to 10" in message
    assert "4 would keep 30 %, 6 would keep 50 %, 8 would keep 70 %" in message
    assert NullSpace.from_moment(moment, NullSpaceRule("threshold", 8)).share == 0.7


def test_a_rule_that_keeps_everything_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        NullSpace.from_moment(torch.eye(4) * 0.001, what="layer 4")
    assert "layer 4 is everything" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        NullSpace.from_moment(torch.diag(torch.tensor([0.001, 1.0])))
    assert not caplog.text


@few
@given(d=st.integers(2, 30), n_null=st.integers(1, 30), seed=st.integers(0, 1000), dtype=st.sampled_from(["32", "64"]))
def test_a_projector_gives_its_null_space_back(d, n_null, seed, dtype):
    n_null = min(n_null, d)
    basis, _ = torch.linalg.qr(random(d, d, seed=seed))
    matrix = (basis[:, :n_null] @ basis[:, :n_null].mT).to(getattr(torch, f"float{dtype}"))
    space = NullSpace.from_projector(matrix)
    assert (space.n_null, space.ordered) == (n_null, False)
    assert torch.allclose(projector(space), matrix.double(), atol=1e-5)
    assert space.energy == 0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.zeros(2, 3), "2 x 3: it should be a square matrix"),
        (torch.zeros(0, 0), "square"),
        (torch.eye(2, dtype=torch.long), "floating point"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "NaN"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), "negative diagonal"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "the eigenvalue -1"),
    ],
)
def test_what_is_no_second_moment_is_refused(matrix, message):
    with pytest.raises(MomentError, match=message):
        NullSpace.from_moment(matrix)


def test_what_is_no_projector_is_refused():
    with pytest.raises(MomentError, match=r"no orthogonal projector: it has the eigenvalue 0\.4"):
        NullSpace.from_projector(torch.diag(torch.tensor([1.0, 0.4])))
    with pytest.raises(MomentError, match="it has the eigenvalue 3"):
        NullSpace.from_projector(torch.diag(torch.tensor([1.0, 3.0])))
    with pytest.raises(MomentError, match="not symmetric"):
        NullSpace.from_projector(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(NullSpaceError, match="zero"):
        NullSpace.from_projector(torch.zeros(3, 3))


def test_wrong_widths_are_refused():
    space = NullSpace.from_moment(torch.diag(torch.tensor([0.001, 1.0])))
    with pytest.raises(SettingError, match="keys are 3 x 1: the null space is for 2 x N"):
        space.coordinates(torch.zeros(3, 1))
    with pytest.raises(SettingError, match="3 coordinates"):
        space.combine(torch.zeros(3, 1))
    with pytest.raises(SettingError, match="n_null is 0"):
        NullSpace(space.basis, 0)


@pytest.mark.parametrize(
    ("by", "value"), [("size", 1), ("share", 1.5), ("share", 0), ("threshold", -1), ("energy", float("nan"))]
)
def test_a_rule_out_of_range_is_refused(by, value):
    with pytest.raises(SettingError, match=r"^(by is 'size': .* one of threshold|value is .*over 0)"):
        NullSpaceRule(by, value)


def test_float32_is_for_wide_moments_without_giants(monkeypatch):
    monkeypatch.setattr(eigenbasis, "_EXACT_WIDTH", 8)
    keys = preserved(16, 12)
    mild = keys @ keys.mT / 1e4
    wild = mild.clone()
    wild[0, 0] += 1e6
    assert decompose(mild).vectors.rows(0, 1).dtype == torch.float32
    assert torch.allclose(decompose(mild).values, decompose(mild, dtype=torch.float64).values, atol=1e-6)
    assert decompose(wild).vectors.rows(0, 1).dtype == torch.float64
