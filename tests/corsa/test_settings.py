"""CoRSA's own settings."""

from __future__ import annotations

import pytest

from corsa_plugins.corsa import (
    CorsaSettings,
    Gram,
    MergeWeights,
    pcgrad_weights,
)
from corsa_plugins.corsa.pcgrad import PCGradForm
from corsa_plugins.errors import SettingError


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dpo_weight": -1.0}, "dpo_weight"),
        ({"beta": 0.0}, "beta"),
        ({"sam_rho": float("nan")}, "sam_rho"),
        ({"sam_eps": 0.0}, "sam_eps"),
        ({"pcgrad_form": "cyclic"}, "pcgrad_form"),
        ({"sam_start": 1.5}, "sam_start"),
        ({"sam_interval": 0}, "sam_interval"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CorsaSettings(**settings)  # type: ignore[arg-type]


def test_defaults_are_the_papers() -> None:
    settings = CorsaSettings()
    assert (settings.dpo_weight, settings.beta, settings.sam_rho, settings.sam_eps) == (1.0, 0.1, 0.05, 1e-12)
    assert (settings.pcgrad, settings.pcgrad_form) == (True, "sequential")


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingError, match=r"dpo_weight is -1.*sam_rho is inf.*pcgrad_form is 'cyclic'"):
        CorsaSettings(dpo_weight=-1.0, sam_rho=float("inf"), pcgrad_form="cyclic")  # type: ignore[arg-type]


CONFLICT = Gram(sft_sft=2.0, dpo_dpo=1.0, sft_dpo=-0.5)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_without_pcgrad_the_losses_are_added_up_also_where_they_conflict(weight: float) -> None:
    assert CorsaSettings(dpo_weight=weight, pcgrad=False).merge(CONFLICT) == MergeWeights(1.0, weight)


@pytest.mark.parametrize("form", ["sequential", "simultaneous"])
def test_with_pcgrad_the_direction_is_pcgrads(form: PCGradForm) -> None:
    settings = CorsaSettings(dpo_weight=0.7, sam_eps=1e-3, pcgrad_form=form)
    assert settings.merge(CONFLICT) == pcgrad_weights(CONFLICT, 0.7, form, 1e-3)
    assert settings.merge(CONFLICT) != MergeWeights(1.0, 0.7)


def with_sam(settings: CorsaSettings, total: int) -> list[int]:
    return [step for step in range(total) if settings.at(step, total).sam_rho > 0]


def test_the_algorithm_has_sam_in_every_step_and_a_schedule_in_some() -> None:
    assert with_sam(CorsaSettings(), 7) == list(range(7))
    assert with_sam(CorsaSettings(sam_start=0.75), 8) == [6, 7]
    assert with_sam(CorsaSettings(sam_interval=3), 8) == [0, 3, 6]
    assert with_sam(CorsaSettings(sam_start=0.5, sam_interval=2), 9) == [5, 7]
    assert with_sam(CorsaSettings(sam_start=1.0), 5) == []
    assert with_sam(CorsaSettings(sam_rho=0.0), 5) == []
    settings = CorsaSettings(sam_start=0.5, dpo_weight=0.3)
    assert settings.at(0, 4) == CorsaSettings(sam_start=0.5, dpo_weight=0.3, sam_rho=0.0)
    assert settings.at(2, 4) == settings


def test_looks_are_what_the_steps_take() -> None:
    assert CorsaSettings().looks(10) == 2
    assert CorsaSettings(sam_rho=0.0).looks(10) == 1
    assert CorsaSettings(sam_start=0.75).looks(8) == 1.25
    assert CorsaSettings(sam_interval=4).looks(8) == 1.25
