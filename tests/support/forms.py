"""Both forms of the closed form, and random problems for either."""

from __future__ import annotations

from hypothesis import strategies as st

from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from tests.support.problems import Problem

FORMS = ["dual", "primal"]
EVERYTHING = SearchSettings(threshold=0.0)
TIGHT = 1e-9

problems = st.builds(
    Problem.random,
    d=st.just(16), d_out=st.integers(1, 9), N=st.integers(1, 20), M=st.integers(0, 9), n_null=st.integers(0, 16),
    seed=st.integers(0, 2**31), ridge=st.floats(1e-2, 1e2), beta=st.sampled_from([0.0, 1.0, 100.0]),
)  # fmt: skip
