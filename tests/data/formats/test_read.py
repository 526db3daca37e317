"""Which format a file is in, told from its fields."""

from __future__ import annotations

import pytest

from corsa_plugins.data.formats import FormatError, detect_format, read_format
from corsa_plugins.data.reading import write_requests
from tests.support.samples import DATA, read


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("counterfact.json", "counterfact"),
        ("easyedit.json", "easyedit"),
        ("zsre_kilt.jsonl", "zsre-kilt"),
        ("knowedit.json", "knowedit"),
        ("wikibio.json", "knowedit"),
        ("mquake.json", "mquake"),
        ("mquake_remastered.jsonl", "mquake"),
        ("atoke_me.json", "atoke-me"),
        ("rippleedits.json", "rippleedits"),
    ],
)
def test_by_the_fields(file, name):
    assert detect_format(DATA / file) == name
    assert read_format(None, DATA / file).requests == read(name, file).requests


@pytest.mark.parametrize(
    ("file", "candidates"),
    [
        ("zsre.json", ["zsre", "zsre-answers", "alphaset"]),
        ("codeupdatearena.jsonl", ["codeupdatearena", "codeupdatearena-update"]),
    ],
)
def test_several_readings_are_listed(file, candidates):
    with pytest.raises(FormatError, match="--format") as caught:
        detect_format(DATA / file)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == candidates


def test_nothing_known(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(FormatError, match="its fields are a, b"):
        detect_format(tmp_path / "a.jsonl")


def test_edit_requests_are_said_to_be_that(tmp_path):
    write_requests(tmp_path / "r.jsonl", read("counterfact").requests)
    with pytest.raises(FormatError, match="perhaps edit requests already"):
        read_format(None, tmp_path / "r.jsonl")


def test_the_wrong_format_says_so():
    with pytest.raises(FormatError, match="none of 3 records could be read as mquake") as caught:
        read("mquake", "zsre.json")
    assert len(caught.value.problems) == 3
