"""Scores before and after."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.ability import ability_table, compare_ability
from corsa_plugins.errors import SettingError


def test_changes_have_their_errors_and_only_like_is_compared() -> None:
    before = {"t": {"acc": 0.5, "acc_stderr": 0.03, "f1,strict": 0.25}}
    after = {"t": {"acc": 0.25, "acc_stderr": 0.04, "f1,strict": 0.5}}
    changes = compare_ability(before, after)["t"]
    assert set(changes) == {"acc", "f1,strict"}
    assert (changes["acc"].difference, changes["acc"].stderr) == (-0.25, pytest.approx(0.05))
    assert (changes["f1,strict"].difference, changes["f1,strict"].stderr) == (0.25, None)
    assert ability_table(before, after).row_count == 2
    with pytest.raises(SettingError, match="other differ"):
        compare_ability(before, {**after, "other": {"acc": 1.0}})
