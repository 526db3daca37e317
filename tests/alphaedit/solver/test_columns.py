"""Matrices of samples: what is none is refused by name, and columns are scaled whatever their size."""

from __future__ import annotations

import math

import pytest
import torch

from corsa_plugins.alphaedit.solver.columns import ColumnsError, check_columns, unit_columns


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_columns_have_norm_1_whatever_their_scale(scale: float) -> None:
    columns = torch.tensor([[3.0, -1.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.6, -1.0, 0.0], [0.8, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(unit_columns(columns * scale, "keys"), expected, rtol=1e-15, atol=0)


def test_any_precision_comes_out_as_float64_and_the_input_is_left_alone() -> None:
    columns = torch.tensor([[2.0], [0.0]], dtype=torch.bfloat16)
    units = unit_columns(columns, "keys")
    assert units.dtype == torch.float64
    assert columns.tolist() == [[2.0], [0.0]]
    assert unit_columns(torch.zeros(0, 3), "keys").shape == (0, 3)


def test_what_is_no_matrix_of_finite_numbers_is_refused_by_name() -> None:
    with pytest.raises(ColumnsError, match=r"keys: a matrix .* not shape \(3,\)"):
        check_columns(torch.zeros(3), "keys")
    with pytest.raises(ColumnsError, match="sample: 3 rows where 2 are needed"):
        check_columns(torch.zeros(3, 1), "sample", rows=2)
    broken = torch.zeros(2, 9)
    broken[0, 2:] = math.nan
    with pytest.raises(ColumnsError, match=r"keys: NaN or infinity in column 2, 3, 4, 5, 6, \.\.\., counted from 0"):
        check_columns(broken, "keys")


def test_large_finite_numbers_whose_sum_overflows_are_no_error() -> None:
    check_columns(torch.full((2, 2), 1e308, dtype=torch.float64), "keys")
