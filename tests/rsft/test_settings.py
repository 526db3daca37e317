"""Settings out of their range are named."""

from __future__ import annotations

from typing import Any

import pytest

from corsa_plugins.errors import SettingError
from corsa_plugins.rsft import RSFTSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("steps", 2.5),
        ("loss_threshold", float("nan")),
        ("learning_rate", 0),
        ("learning_rate", "5e-4"),  # what YAML makes of it
        ("layer", -1),
        ("modules", "transformer.h.1.mlp"),
        ("modules", []),
        ("optimizer", "adam"),
        ("on_interrupt", "stop"),
        ("loss_reduction", "max"),
        ("seed", "0"),
        ("density", 1.5),
        ("density", "automatic"),
        ("weight", float("inf")),
        ("prefix_cache_gib", -1),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=name):
        RSFTSettings(**{name: value})
