"""Every class of settings stands on the base."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import corsa_plugins
from corsa_plugins.alphaedit import AlphaEditSettings
from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.statistics.plan import CollectionPlan
from corsa_plugins.alphaedit.values.anchor import NormAnchorSettings
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.bench.conflict_sets import ConflictPlan
from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.in_context.store import InContextSettings
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.rsft import RSFTSettings
from corsa_plugins.testbed.facts import WorldConfig
from corsa_plugins.testbed.recipe import ModelConfig, TestbedRecipe, TrainingConfig

OURS: list[Any] = [
    AlphaEditSettings, CollectionPlan, ConflictPlan, CorsaSettings, InContextSettings, LocFTSettings, ModelConfig,
    NeighbourSettings, NormAnchorSettings, NullSpaceRule, RestraintSettings, RSFTSettings, SearchSettings,
    SmoothingSettings, TestbedRecipe, TrainingConfig, ValueSettings, WorldConfig,
]  # fmt: skip
NEEDED: dict[Any, dict[str, Any]] = {
    AlphaEditSettings: {"layers": [4]},
    ConflictPlan: {"kind": "prior", "size": 3},
    RestraintSettings: {"rule": "relative_change"},
    CollectionPlan: {"n_tokens": 9, "length": 3, "batch_size": 1, "pack": True, "sample_size": 0, "seed": 0},
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, field.name) for kind in OURS for field in fields(kind)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_setting_is_checked_and_says_in_words_what_it_must_be(kind: Any, name: str) -> None:
    with pytest.raises(
        SettingError, match=rf"^{name} is <object object at \w+>: it must be (?!anything|of class object)"
    ):
        kind.from_dict({**NEEDED.get(kind, {}), name: object()})


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_class_has_defaults_that_come_back(kind: Any) -> None:
    default = kind.from_dict(NEEDED.get(kind, {}))
    assert kind.from_dict(json.loads(json.dumps(default.as_dict()))) == default == replace(default)


def test_no_class_is_left_out_here() -> None:
    written = {
        name
        for path in Path(corsa_plugins.__file__).parent.rglob("*.py")
        for name in re.findall(r"^class ([A-Z]\w*)\(Settings\):", path.read_text("utf-8"), re.MULTILINE)
    }
    assert written == {kind.__name__ for kind in OURS}
