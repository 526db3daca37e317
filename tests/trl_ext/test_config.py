"""`CoRSAConfig`: the paper's defaults, and its own settings checked where they are declared."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.errors import SettingError
from trl_ext import CoRSAConfig
from trl_ext.activations import RENAMED


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = CoRSAConfig(str(tmp_path), use_cpu=True)
    assert (config.dpo_weight, config.beta, config.sam_rho, config.sam_eps) == (1.0, 0.1, 0.05, 1e-12)
    assert (config.pcgrad, config.pcgrad_form, config.reference) == (True, "sequential", "base")
    assert config.learning_rate == 2e-4
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 16
    assert config.precompute_ref_log_probs


def test_checkpointing_settings_as_json_as_a_command_line_gives_them(tmp_path: Path) -> None:
    config = CoRSAConfig(str(tmp_path), use_cpu=True, gradient_checkpointing_kwargs='{"use_reentrant": false}')
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("name", ["gradient_checkpointing", *RENAMED.values()][:2])
@pytest.mark.parametrize("wanted", [True, False])
def test_checkpointing_is_asked_for_by_either_name_without_a_warning(tmp_path: Path, name: str, wanted: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = CoRSAConfig(str(tmp_path), use_cpu=True, **{name: wanted, f"{name}_kwargs": {"use_reentrant": False}})
    for found in {"gradient_checkpointing", name}:
        assert getattr(config, found) is wanted
        assert getattr(config, f"{found}_kwargs") == {"use_reentrant": False}
    with pytest.raises(SettingError, match="use_reentrant"):
        CoRSAConfig(str(tmp_path), use_cpu=True, **{f"{name}_kwargs": '{"use_reentrant": true}'})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dpo_weight": -0.1}, "dpo_weight is -0.1: it must be a number of at least 0"),
        ({"dpo_weight": float("inf")}, "dpo_weight is inf: it must be a finite number"),
        ({"sam_rho": -1.0}, "sam_rho is -1.0: it must be a number of at least 0"),
        ({"sam_rho": float("nan")}, "sam_rho is nan: it must be a finite number"),
        ({"sam_eps": 0.0}, "sam_eps is 0.0: it must be a number over 0"),
        ({"beta": 0.0}, "beta is 0.0: it must be a number over 0"),
        ({"beta": float("nan")}, "beta is nan: it must be a finite number"),
        ({"pcgrad": "no"}, "pcgrad is 'no': it must be true or false"),
        ({"pcgrad_form": "random"}, "pcgrad_form is 'random': it must be one of sequential, simultaneous"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_corsas_own_settings_are_refused_as_their_class_does(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as ours:
        CoRSAConfig(str(tmp_path), use_cpu=True, **setting)
    with pytest.raises(SettingError) as theirs:
        CorsaSettings(**setting)
    assert str(ours.value) == str(theirs.value)


def test_every_one_of_corsas_own_settings_is_a_field_with_its_default_and_reaches_the_step(tmp_path: Path) -> None:
    names = {setting.name for setting in fields(CorsaSettings)}
    assert names <= {field.name for field in fields(CoRSAConfig)}
    assert CoRSAConfig(str(tmp_path), use_cpu=True).corsa_settings() == CorsaSettings()
    others = CorsaSettings(2.0, 0.3, 0.5, 1e-6, False, "simultaneous", 0.5, 1.0, 0.25, 3)
    assert CoRSAConfig(str(tmp_path), use_cpu=True, **others.as_dict()).corsa_settings() == others


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"one_backward": "no"}, "one_backward is 'no': it must be true or false"),
        ({"num_train_epochs": -1}, "num_train_epochs=-1 with max_steps=-1: no step would be taken"),
        ({"num_train_epochs": 0}, "no step would be taken"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_would_not_train_as_it_reads_is_refused(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        CoRSAConfig(str(tmp_path), use_cpu=True, **setting)


def test_a_number_of_steps_goes_before_the_epochs(tmp_path: Path) -> None:
    assert CoRSAConfig(str(tmp_path), use_cpu=True, num_train_epochs=0, max_steps=5).max_steps == 5
