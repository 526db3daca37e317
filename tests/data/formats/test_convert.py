"""A data set into files of edit requests, without the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.data.formats import FormatError, convert_to_requests, format_names, get_format, read_format
from corsa_plugins.data.formats.convert import SHOWN
from corsa_plugins.data.reading import read_requests
from corsa_plugins.errors import SettingError

DATA = Path(__file__).parent / "data"


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    done = convert_to_requests(DATA / "counterfact.json", tmp_path / "new" / "facts.jsonl", name="counterfact")
    assert done.result == read_format("counterfact", DATA / "counterfact.json")
    assert done.files == {tmp_path / "new" / "facts.jsonl": done.result.requests}
    assert read_requests(tmp_path / "new" / "facts.jsonl") == done.result.requests
    lines = done.lines()
    assert lines[0].startswith("read 2 records of ")
    assert lines[-1] == f"written to {tmp_path / 'new' / 'facts.jsonl'}: 2 requests"


def test_all_malformed_records_are_counted_and_some_are_listed(tmp_path: Path) -> None:
    records = json.loads((DATA / "counterfact.json").read_text("utf-8"))
    (tmp_path / "in.json").write_text(json.dumps([*records, *[{}] * (SHOWN + 3)]))
    lines = convert_to_requests(tmp_path / "in.json", tmp_path / "out.jsonl", name="counterfact").lines()
    at = lines.index(f"malformed, skipped: {SHOWN + 3}")
    assert lines[at + SHOWN + 1] == "  ... and 3 more"


def test_rounds_are_files_and_those_of_another_run_are_named(tmp_path: Path) -> None:
    stale = tmp_path / "h[1].round-3.jsonl"
    stale.write_text("of another run")
    (tmp_path / "h1.round-9.jsonl").write_text("of another file")
    done = convert_to_requests(DATA / "atoke_me.json", tmp_path / "h[1].jsonl", rounds=True)
    assert [path.name for path in done.files] == ["h[1].round-1.jsonl", "h[1].round-2.jsonl"]
    assert all(read_requests(path) == requests for path, requests in done.files.items())
    assert done.other_rounds == (stale,)
    assert not done.left_out


def test_the_first_of_a_contradiction_is_kept(tmp_path: Path) -> None:
    done = convert_to_requests(DATA / "atoke_me.json", tmp_path / "h.jsonl")
    assert len(done.left_out) == 1
    assert len(read_requests(tmp_path / "h.jsonl")) == len(done.result.requests) - 1
    (tmp_path / "h.jsonl").unlink()
    with pytest.raises(FormatError, match="contradicts"):
        convert_to_requests(DATA / "atoke_me.json", tmp_path / "h.jsonl", strict=True)
    assert not list(tmp_path.iterdir())


def test_the_source_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_bytes((DATA / "counterfact.json").read_bytes())
    with pytest.raises(SettingError, match="is the file that is read"):
        convert_to_requests(tmp_path / "in.json", tmp_path / "." / "in.json")
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        convert_to_requests(tmp_path / "in.json", tmp_path)


@pytest.mark.parametrize("name", format_names())
def test_a_format_tells_of_every_field(name: str) -> None:
    form = get_format(name)
    assert form.details().startswith(form.summary())
    lines = form.details().splitlines()
    for field, fate in (*form.mapping.items(), *form.dropped.items()):
        assert {f"  {field} -> {fate}", f"  {field}: {fate}"} & set(lines)
