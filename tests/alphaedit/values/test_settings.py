"""Settings of the search for values."""

from __future__ import annotations

from typing import Any

import pytest

from corsa_plugins.alphaedit.values.search import ValueSettings
from corsa_plugins.errors import SettingError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr_unit", "times"),
        ("loss_layer", -1),
        ("weight_decay", -0.1),
        ("clamp", 0),
        ("kl_factor", float("inf")),
        ("stop_loss", -1),
        ("batch_size", True),
        ("fact_token", "middle"),
        ("reuse_prefix", 1),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{name} is "):
        ValueSettings(**{name: value})
