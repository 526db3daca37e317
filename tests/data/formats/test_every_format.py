"""What is so of each published format: nothing is left out of it without being counted."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.data.formats import format_names, get_format, read_format
from corsa_plugins.data.formats.paths import covers, leaf_fields
from corsa_plugins.data.reading import read_requests, write_requests
from tests.support.samples import SAMPLES, read, records


def test_each_has_a_sample():
    assert set(SAMPLES) == set(format_names())


@pytest.mark.parametrize("name", SAMPLES)
def test_is_read_whole_and_round_trips(name, tmp_path):
    result = read(name)
    assert result.requests
    assert not result.problems
    assert result.read == len(records(SAMPLES[name]))
    for at, request in enumerate(result.requests):  # one by one: those of a history contradict each other
        write_requests(tmp_path / f"{at}.jsonl", [request])
        assert read_requests(tmp_path / f"{at}.jsonl") == [request]


@pytest.mark.parametrize("name", SAMPLES)
def test_accounts_for_every_field_of_its_records(name):
    form = get_format(name)
    fields = {field for record in records(SAMPLES[name]) for field in leaf_fields(record)}
    assert {
        field for field in fields if not any(covers(known, field) for known in (*form.mapping, *form.dropped))
    } == set()
    unused = {field for field in fields if not any(covers(used, field) for used in form.mapping)}
    named = {path.replace("[]", "") for path in form.dropped if any(covers(path, field) for field in unused)}
    result = read(name)
    assert named <= set(result.dropped)
    found = {path for path in form.mapping if any(covers(path, field) for field in fields)}
    assert result.mapping == {path: form.mapping[path] for path in form.mapping if path in found}


@pytest.mark.parametrize("name", SAMPLES)
def test_an_unknown_field_is_counted(name, tmp_path):
    first = records(SAMPLES[name])[0]
    (tmp_path / "f.json").write_text(json.dumps([{**first, "novelty": {"a": [1, 2]}, "empty": None}]))
    dropped = read_format(name, tmp_path / "f.json").dropped
    assert dropped["novelty.a"] == 2
    assert "empty" not in dropped
