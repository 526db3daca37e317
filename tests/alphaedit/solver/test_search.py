"""The search for eigenvectors: line by line the paper's, and the published code's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings, Solution
from corsa_plugins.errors import SettingError
from tests.oracles import alphaedit as oracle
from tests.support.forms import EVERYTHING, FORMS, TIGHT, problems
from tests.support.problems import Problem, error


@settings(max_examples=30, deadline=None)
@given(problems, st.sampled_from(FORMS), st.sampled_from([0.0, 1e-3, 1e-2, 5e-2]), st.sampled_from([1, 3, 10]))
def test_search_equals_algorithm_1_line_by_line(p: Problem, form: str, threshold: float, block: int) -> None:
    solved = p.solve(form=form, search=SearchSettings(threshold, block))
    used, P_mod, values = oracle.search(
        p.W, p.K1, p.V1, p.Kp, p.Lp, p.U, p.n_null, p.ridge, p.beta, threshold, at_a_time=block
    )
    assert (solved.rank, solved.added) == (len(used), len(used) - p.n_null)
    assert solved.objective == pytest.approx(values, rel=1e-8)
    literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, P_mod, p.ridge, p.beta)
    assert np.linalg.norm(p.delta(solved) - literal) <= TIGHT * (1e-3 + np.linalg.norm(literal))
    # What was refused is what the threshold says; and it was refused only if there was something left to refuse.
    assert (solved.refused is None) == (solved.rank == 16)


@pytest.mark.parametrize("form", FORMS)
def test_search_equals_the_published_codes(form: str) -> None:
    """Ten at a time against 10 epsilon, and beta times the layer's place."""
    p = Problem.random(d=64, n_null=17, N=6, M=5)
    stops = set()
    for epsilon in (1e-4, 1e-2, 3e-2, 6e-2):
        used, P_mod, values = oracle.published_search(
            p.W, p.K1, p.V1, p.Kp, p.Lp, p.U, p.n_null, p.ridge, p.beta, epsilon, layer_position=4
        )
        solved = p.but(beta=4 * p.beta).solve(form=form, search=SearchSettings(epsilon, block=10))
        assert solved.rank == len(used)
        assert solved.objective == pytest.approx(values, rel=TIGHT)
        literal = oracle.solution(p.R, p.K1, p.Kp, p.Lp, P_mod, p.ridge, 4 * p.beta)
        assert error(p.delta(solved), literal) <= TIGHT
        stops.add(solved.added)
    assert len(stops) > 1  # the threshold decides


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_added_where_nothing_can_be_gained(form: str) -> None:
    p = Problem.random()
    p = p.but(K1=p.P @ p.K1, Kp=p.P @ p.Kp)
    solved = p.solve(form=form, search=EVERYTHING)
    assert solved.added == 0
    assert solved.refused is not None
    assert solved.refused <= 1e-16  # the rounding of U^T P K


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 4])
def test_limit_is_kept_to(form: str, block: int) -> None:
    p = Problem.random()
    for limit in (0, 1, 6, 100):
        solved = p.solve(form=form, search=SearchSettings(0.0, block, limit))
        assert solved.added == min(limit, 12)
        assert solved.refused is None
        assert len(solved.objective) == 1 + math.ceil(solved.added / block)


def test_a_solution_says_what_ended_the_search() -> None:
    p = Problem.random()
    solved = p.solve(search=SearchSettings(0.05))
    assert isinstance(solved, Solution)
    assert solved.refused is not None
    assert 0 < solved.refused < 0.05
    assert all((a - b) / a >= 0.05 for a, b in zip(solved.objective, solved.objective[1:], strict=False))
    # Line 7: a reduction *below* epsilon ends it, one that equals epsilon does not.
    assert p.solve(search=SearchSettings(solved.refused)).added > solved.added


def test_search_settings_out_of_range_are_refused_by_name() -> None:
    wrong: list[tuple[str, Any]] = [
        ("threshold", -1e-4), ("threshold", math.nan), ("threshold", "low"), ("block", 0), ("block", 1.0),
        ("limit", -1), ("limit", 2.5), ("rule", "prize"), ("weight", -1.0), ("weight", None),
    ]  # fmt: skip
    for name, value in wrong:
        with pytest.raises(SettingError, match=f"^{name} is"):
            SearchSettings(**{name: value})
