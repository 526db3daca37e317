"""Conflicts: equal to the paper's definitions, in any chunks, and defined for every finite key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corsa_plugins.alphaedit.solver import conflict
from corsa_plugins.alphaedit.solver.columns import ColumnsError
from corsa_plugins.alphaedit.solver.conflict import pairwise_conflict, prior_weights, sample_conflict, subspace_conflict
from corsa_plugins.errors import SettingError
from tests.oracles import alphaedit as oracle

D, N, S = 12, 5, 23


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-12) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=tolerance))


@pytest.mark.parametrize("chunk", [1, 7, 23, 1024])
def test_equals_equation_3_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(conflict, "CHUNK", chunk)
    keys, sample = normal(D, N), normal(D, S, seed=1)
    literal = [oracle.conflict(k.numpy(), sample.numpy()) for k in keys.T]
    assert close(sample_conflict(keys, sample), torch.tensor(literal))


def test_equals_equation_6_in_the_subspace() -> None:
    basis = torch.linalg.qr(normal(D, D)).Q
    keys = normal(D, N, seed=1)
    for n_null in (0, 1, 7, D):
        P = oracle.projector(basis.numpy(), range(n_null))
        literal = [oracle.subspace_conflict(k.numpy(), P) for k in keys.T]
        assert close(subspace_conflict(basis.T @ keys, n_null), torch.tensor(literal), 1e-7 if n_null == D else 1e-12)


def test_a_conflict_far_below_the_square_root_of_rounding_is_still_seen() -> None:
    coordinates = torch.tensor([[1.0], [1e-12]], dtype=torch.float64)
    assert subspace_conflict(coordinates, 1).item() == pytest.approx(1e-12, rel=1e-9)


def test_weights_of_prior_edits_are_one_minus_their_conflict_with_the_new() -> None:
    prior, new = normal(D, 6), normal(D, N, seed=1)
    assert close(prior_weights(prior, new), torch.tensor(oracle.weights(prior.numpy(), new.numpy())).diagonal())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 6), st.integers(0, 6), st.floats(1e-200, 1e200))
def test_weights_lie_between_0_and_1_whatever_the_scale(seed: int, n_prior: int, n_new: int, scale: float) -> None:
    prior, new = normal(D, n_prior, seed=seed), normal(D, n_new, seed=seed + 1)
    weights = prior_weights(prior * scale, new)
    assert weights.shape == (n_prior,)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert close(weights, prior_weights(-prior, new))
    assert close(weights, prior_weights(-1e200 * prior, 1e-200 * new))  # squares would leave the range of float64
    if not n_new:
        assert (weights == 1).all()


def test_the_same_key_conflicts_wholly_and_an_orthogonal_one_not_at_all() -> None:
    basis = torch.linalg.qr(normal(D, D)).Q
    assert close(prior_weights(basis[:, :3], -5 * basis[:, 1:2]), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_pairs_within_a_batch() -> None:
    keys = normal(D, N)
    conflicts = pairwise_conflict(keys)
    for i in range(N):
        for j in range(N):
            literal = 0.0 if i == j else oracle.conflict(keys[:, i].numpy(), keys[:, j : j + 1].numpy())
            assert conflicts[i, j].item() == pytest.approx(literal, abs=1e-12)
    assert pairwise_conflict(keys[:, :1]).tolist() == [[0.0]]
    assert pairwise_conflict(keys[:, :0]).shape == (0, 0)


def test_a_key_of_zeros_conflicts_with_nothing() -> None:
    keys = normal(D, 3)
    keys[:, 1] = 0
    assert sample_conflict(keys, normal(D, S))[1] == 0
    assert subspace_conflict(keys, 4)[1] == 0
    assert prior_weights(keys, normal(D, 2))[1] == 1
    assert not pairwise_conflict(keys)[1].any()
    assert not sample_conflict(keys, torch.zeros(D, 2)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sample_in_storage_precision_is_taken_as_it_is(dtype: torch.dtype) -> None:
    keys, sample = normal(D, N), normal(D, S, seed=1).to(dtype)
    assert close(sample_conflict(keys, sample), sample_conflict(keys, sample.double()))


def test_what_is_no_key_is_refused_by_name() -> None:
    keys = normal(D, N)
    broken = keys.clone()
    broken[3, 2] = float("nan")
    for call in (
        lambda: sample_conflict(keys, broken),
        lambda: prior_weights(broken, keys),
        lambda: pairwise_conflict(broken),
        lambda: subspace_conflict(broken, 2),
    ):
        with pytest.raises(ColumnsError, match="column 2"):
            call()
    with pytest.raises(ColumnsError, match="3 rows where 12 are needed"):
        sample_conflict(keys, keys[:3])
    with pytest.raises(ColumnsError, match="matrix"):
        pairwise_conflict(keys[0])
    for n_null in (-1, D + 1):
        with pytest.raises(SettingError, match="n_null"):
            subspace_conflict(keys, n_null)
