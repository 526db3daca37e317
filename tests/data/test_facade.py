"""The everyday names of the room, from where README shows them."""

from __future__ import annotations

import importlib

import pytest

import corsa_plugins.preferences
import corsa_plugins.requests


@pytest.mark.parametrize(
    ("facade", "names"),
    [
        (
            corsa_plugins.requests,
            "EditRequest Probe RequestConflict RequestError RequestIssues check_requests read_probes read_requests "
            "write_probes write_requests",
        ),
        (corsa_plugins.preferences, "FilledRequests PreferenceError fill_target_old to_preference_rows"),
    ],
)
def test_every_name_is_the_one_of_its_module(facade, names):
    assert sorted(facade.__all__) == sorted(names.split())
    for name in facade.__all__:
        value = getattr(facade, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert value.__module__.startswith("corsa_plugins.data.")
