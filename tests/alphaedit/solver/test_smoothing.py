"""Smoothed targets: the schedule of Eq. 7, who is smoothed, and the two ways to choose t."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.alphaedit.solver.smoothing import (
    SmoothingChoice,
    SmoothingError,
    SmoothingSettings,
    is_smoothed,
    select_smoothing,
    smoothing,
)
from corsa_plugins.errors import SettingError
from tests.oracles import alphaedit as oracle

norms = st.lists(st.floats(0, 1e6), min_size=0, max_size=30).map(lambda x: torch.tensor(x, dtype=torch.float64))


def test_the_residual_of_smoothed_targets_is_the_residual_scaled_by_column() -> None:
    """R(t) = V1(t) - W K1 of Eq. 9, by the oracle's targets, is R diag(1 - beta(t))."""
    generator = np.random.default_rng(0)
    W, K, V = generator.normal(size=(4, 6)), generator.normal(size=(6, 5)), generator.normal(size=(4, 5))
    R = V - W @ K
    lengths = np.linalg.norm(R, axis=0)
    tau = float(np.sort(lengths)[2])
    for t in range(11):
        targets, beta = oracle.smoothed(W, K, V, t, 10, lengths > tau)
        ours = smoothing(torch.tensor(lengths), t, SmoothingSettings(threshold=tau)).numpy()
        assert np.array_equal(ours, beta)
        assert (ours > 0).sum() == (2 if t < 10 else 0)
        assert np.allclose(R * (1 - ours), targets - W @ K, rtol=0, atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(norms, st.integers(1, 12), st.floats(0, 1))
def test_schedule_falls_from_a_half_to_nothing_for_the_largest_only(
    lengths: torch.Tensor, T: int, share: float
) -> None:
    chosen = SmoothingSettings(steps=T, share=share)
    betas = torch.stack([smoothing(lengths, t, chosen) for t in range(T + 1)])
    smoothed = is_smoothed(lengths, chosen)
    assert (betas[0] == torch.where(smoothed, 0.5, 0.0)).all()
    assert not betas[-1].any()
    assert (betas.diff(dim=0)[:, smoothed] < 0).all()
    if smoothed.any() and not smoothed.all():
        assert lengths[smoothed].min() >= lengths[~smoothed].max()
    assert smoothed.sum() <= share * len(lengths) + 0.5 + 1e-6


@pytest.mark.parametrize(
    ("n", "share", "count"),
    [(0, 0.2, 0), (1, 0.2, 0), (2, 0.2, 0), (3, 0.2, 1), (5, 0.2, 1), (7, 0.2, 1), (8, 0.2, 2), (100, 0.2, 20),
     (50, 0.29, 15), (10, 0.25, 3), (4, 0.0, 0), (4, 1.0, 4)],
)  # fmt: skip
def test_share_is_the_nearest_count(n: int, share: float, count: int) -> None:
    lengths = torch.arange(1, n + 1, dtype=torch.float64)
    assert int(is_smoothed(lengths, SmoothingSettings(share=share, over_median=0)).sum()) == count


def test_of_equal_norms_the_earlier_come_first_and_zeros_never() -> None:
    half = SmoothingSettings(share=0.5, over_median=0)
    assert is_smoothed(torch.tensor([1.0, 2.0, 2.0, 2.0]), half).tolist() == [False, True, True, False]
    assert is_smoothed(torch.tensor([0.0, 0.0, 3.0, 0.0]), half).tolist() == [False, False, True, False]


def test_in_a_batch_without_outliers_nobody_is_smoothed() -> None:
    """By default an outlier is more than twice as far from its target as half of those that have a way to go."""
    lengths = torch.tensor([8.0, 9.0, 10.0, 11.0, 19.9, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert not is_smoothed(lengths, SmoothingSettings()).any()
    lengths[4] = 20.1
    for unit in (1.0, 1e-6, 1e6):
        assert is_smoothed(unit * lengths, SmoothingSettings()).nonzero().flatten().tolist() == [4]
    assert not is_smoothed(lengths, SmoothingSettings(over_median=2.1)).any()
    assert int(is_smoothed(lengths, SmoothingSettings(over_median=0)).sum()) == 2  # the paper's share, whoever it is


@settings(max_examples=100, deadline=None)
@given(norms, st.floats(0, 1), st.floats(0, 4))
def test_an_outlier_is_one_of_the_share(lengths: torch.Tensor, share: float, factor: float) -> None:
    found = is_smoothed(lengths, SmoothingSettings(share=share, over_median=factor))
    among = is_smoothed(lengths, SmoothingSettings(share=share, over_median=0))
    positive = sorted(float(length) for length in lengths if length > 0)
    expected = [bool(a) and float(x) > factor * np.median(positive) for a, x in zip(among, lengths, strict=True)]
    assert found.tolist() == expected


def test_threshold_is_strict_and_overrides_share() -> None:
    lengths = torch.tensor([1.0, 2.0, 3.0])
    assert is_smoothed(lengths, SmoothingSettings(share=1.0, threshold=2.0)).tolist() == [False, False, True]


def scored(values: list[float], asked: list[int]) -> Callable[[int], float]:
    def score(t: int) -> float:
        asked.append(t)
        return values[t]

    return score


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.1001, 0.5, 1.0]), min_size=2, max_size=8))
def test_early_stop_is_lines_15_to_20(values: list[float]) -> None:
    T, tolerance = len(values) - 1, 2e-4
    expected = 0
    before = values[0]
    for t in range(1, T + 1):
        expected = t
        if abs(values[t] - before) <= tolerance:
            break
        before = values[t]
    asked: list[int] = []
    settings = SmoothingSettings(steps=T, tolerance=tolerance, selection="early_stop")
    choice = select_smoothing(scored(values, asked), settings)
    assert choice == SmoothingChoice(expected, tuple(values[: expected + 1]))
    assert asked == list(range(expected + 1))  # nothing is validated twice or for nothing


def test_a_change_of_exactly_the_tolerance_stops() -> None:
    settings = SmoothingSettings(steps=2, tolerance=0.5, selection="early_stop")
    assert select_smoothing(scored([0.0, 0.5, 2.0], []), settings).t == 1


def test_best_asks_for_all_and_keeps_the_first_of_the_highest() -> None:
    asked: list[int] = []
    choice = select_smoothing(scored([0.1, 0.7, 0.2, 0.7], asked), SmoothingSettings(steps=3, selection="best"))
    assert choice == SmoothingChoice(1, (0.1, 0.7, 0.2, 0.7))
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("lengths", [torch.zeros(5), torch.ones(1), torch.ones(0)])
def test_nothing_is_validated_when_nothing_is_smoothed(lengths: torch.Tensor) -> None:
    asked: list[int] = []
    chosen = SmoothingSettings()
    choice = select_smoothing(scored([0.0] * 11, asked), chosen, lengths)
    assert choice == SmoothingChoice(10, ())
    assert not asked
    assert not smoothing(lengths, choice.t, chosen).any()
    assert select_smoothing(scored([], asked), SmoothingSettings(steps=0)) == SmoothingChoice(0, ())
    assert not smoothing(torch.ones(9), 0, SmoothingSettings(steps=0)).any()


def test_bad_input_is_refused_by_name() -> None:
    for name, value in [
        ("steps", -1), ("steps", 2.5), ("steps", True), ("share", 1.5), ("share", math.nan), ("threshold", -1.0),
        ("over_median", -1.0),
        ("tolerance", math.inf), ("selection", "last"),
    ]:  # fmt: skip
        with pytest.raises(SettingError, match=f"^{name} is"):
            SmoothingSettings(**{name: value})  # type: ignore[arg-type]
    for t in (-1, 11):
        with pytest.raises(SettingError, match="t is"):
            smoothing(torch.ones(3), t, SmoothingSettings())
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(SmoothingError, match="request 1"):
            smoothing(torch.tensor([1.0, bad]), 0, SmoothingSettings())
    with pytest.raises(SmoothingError, match="shape"):
        smoothing(torch.ones(2, 2), 0, SmoothingSettings())
    with pytest.raises(SmoothingError, match="t = 1 is NaN"):
        select_smoothing(scored([0.5, math.nan], []), SmoothingSettings())
