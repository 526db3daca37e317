"""Errors as they come out of another process."""

from __future__ import annotations

import pickle

import pytest

from corsa_plugins.errors import CorsaError, LoadingError, MissingExtraError
from corsa_plugins.settings import InvalidSettingsError, Problem


@pytest.mark.parametrize(
    "error",
    [
        InvalidSettingsError(
            [Problem("lr", "is -1: it must be positive"), Problem("stpes", "is no setting")], "a.yaml"
        ),
        MissingExtraError("corsa train needs TRL", name="trl"),
        LoadingError(2, "no such model", "folder"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_from_a_process_as_it_was_raised(error: CorsaError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)
    assert getattr(back, "name", None) == getattr(error, "name", None)
    assert getattr(back, "filename", None) == getattr(error, "filename", None)
