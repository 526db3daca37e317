"""Extreme eigenvalues of matrices whose spectrum is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.curvature import extreme_eigenvalues


def times(matrix):
    return lambda vector: [(matrix @ vector[0]).clone()]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.integers(0, 1000))
def test_any_spectrum(spectrum, seed):
    generator = torch.Generator().manual_seed(seed)
    size = len(spectrum)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ basis.T
    like = [torch.zeros(size, dtype=torch.float64)]
    found = extreme_eigenvalues(times(matrix), like, tolerance=1e-9, max_iterations=200, seed=seed)
    slack = 1e-6 * max(map(abs, spectrum)) + 1e-12
    assert found.converged
    assert found.top == pytest.approx(max(spectrum), abs=slack)
    assert abs(found.largest) == pytest.approx(max(map(abs, spectrum)), abs=slack)


def test_a_limit_reached_is_reported_and_the_value_is_within_its_bound():
    spectrum = torch.linspace(-1, 1, 200, dtype=torch.float64)
    found = extreme_eigenvalues(times(torch.diag(spectrum)), [spectrum], tolerance=1e-12, max_iterations=5)
    assert not found.converged
    assert found.iterations == 5
    assert min(abs(spectrum - found.largest)) <= found.residual
    assert abs(found.largest) < 1


def test_nothing_curved():
    found = extreme_eigenvalues(times(torch.zeros(4, 4)), [torch.zeros(4)])
    assert (found.largest, found.top, found.converged, found.iterations) == (0, 0, True, 1)


def test_the_seed_decides():
    matrix = torch.diag(torch.arange(50.0))
    runs = [extreme_eigenvalues(times(matrix), [torch.zeros(50)], max_iterations=3, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
