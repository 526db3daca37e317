"""`corsa convert`: files out, and a report of what was mapped, dropped and malformed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from corsa_plugins.cli.commands.convert import convert
from corsa_plugins.data.code_problems import read_problems
from corsa_plugins.data.formats import FormatError, formats, read_format
from corsa_plugins.data.reading import read_requests
from corsa_plugins.errors import CorsaError, SettingError
from tests.support.samples import DATA


@pytest.fixture
def run(capsys):
    """Runs the command with the given arguments, as `corsa` would, and gives what it printed."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.callback()(lambda: None)
    app.command("convert")(convert)

    def call(*arguments):
        app(args=["convert", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_a_file_is_converted_and_reported(run, tmp_path):
    out = tmp_path / "new" / "facts.jsonl"
    text = run("--format", "counterfact", DATA / "counterfact.json", out)
    assert read_requests(out) == read_format("counterfact", DATA / "counterfact.json").requests
    assert "read 2 records" in text
    assert "requested_rewrite.target_true.str -> target_old" in text
    assert "attribute_prompts: 3 (prompts whose true answer is target_new" in text
    assert "malformed, skipped: 0" in text
    assert f"written to {out}: 2 requests" in text
    assert [path.name for path in out.parent.iterdir()] == ["facts.jsonl"]


def test_the_format_is_told_from_the_fields(run, tmp_path):
    assert "as mquake: 2 requests" in run(DATA / "mquake.json", tmp_path / "m.jsonl")
    with pytest.raises(FormatError, match="zsre-answers"):
        run(DATA / "zsre.json", tmp_path / "z.jsonl")


def test_malformed_records_are_listed_or_stop_it(run, tmp_path):
    records = json.loads((DATA / "counterfact.json").read_text("utf-8"))
    (tmp_path / "in.json").write_text(json.dumps([records[0], {}, records[1]]))
    text = run(tmp_path / "in.json", tmp_path / "out.jsonl", "--format", "counterfact")
    assert "malformed, skipped: 1\n  record 1: field 'requested_rewrite' is missing" in text
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(FormatError, match="record 1"):
        run(tmp_path / "in.json", tmp_path / "out.jsonl", "--strict")
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_is_written_over_when_it_fails(run, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(CorsaError):
        run("--format", "mquake", DATA / "zsre.json", out)
    assert out.read_text() == "precious"


def test_limit(run, tmp_path):
    run(DATA / "counterfact.json", tmp_path / "o.jsonl", "--limit", 1)
    assert len(read_requests(tmp_path / "o.jsonl")) == 1


def test_repeated_requests_are_counted(run, tmp_path):
    records = json.loads((DATA / "counterfact.json").read_text("utf-8"))
    (tmp_path / "in.json").write_text(json.dumps([*records, records[0], records[0]]))
    assert "repeated requests: 2 (kept" in run(tmp_path / "in.json", tmp_path / "o.jsonl")
    assert len(read_requests(tmp_path / "o.jsonl")) == 4


class TestHistories:
    def test_the_first_is_kept_and_the_others_listed(self, run, tmp_path):
        text = run(DATA / "atoke_me.json", tmp_path / "h.jsonl")
        assert [request.case_id for request in read_requests(tmp_path / "h.jsonl")] == ["3-1"]
        assert "contradicting an earlier request, left out (--rounds keeps them): 1\n  case '3-2'" in text

    def test_rounds(self, run, tmp_path):
        (tmp_path / "h.round-3.jsonl").write_text("of another run")
        text = run(DATA / "atoke_me.json", tmp_path / "h.jsonl", "--rounds")
        for number, case in ((1, "3-1"), (2, "3-2")):
            assert [r.case_id for r in read_requests(tmp_path / f"h.round-{number}.jsonl")] == [case]
        assert "h.round-2.jsonl: 1 requests" in text
        assert not (tmp_path / "h.jsonl").exists()

    def test_files_of_another_run_are_pointed_out(self, tmp_path, capsys, run):
        (tmp_path / "h.round-3.jsonl").write_text("of another run")
        convert(str(DATA / "atoke_me.json"), tmp_path / "h.jsonl", rounds=True)
        assert "h.round-3.jsonl was there before" in capsys.readouterr().err

    def test_strict_refuses_them(self, run, tmp_path):
        with pytest.raises(FormatError, match="--rounds keeps both"):
            run(DATA / "atoke_me.json", tmp_path / "h.jsonl", "--strict")


class TestHub:
    def test_a_named_data_set(self, run, tmp_path):
        folder = tmp_path / "arena"
        folder.mkdir()
        (folder / "arena-ungrouped.jsonl").write_bytes((DATA / "codeupdatearena.jsonl").read_bytes())
        run("--format", "codeupdatearena", "--hub", folder, tmp_path / "c.jsonl")
        assert len(read_requests(tmp_path / "c.jsonl")) == 2

    def test_the_documented_one(self, run, tmp_path):
        with pytest.raises(FormatError, match=r"leo-liuzy/CodeUpdateArena cannot be loaded"):
            run("--format", "codeupdatearena", "--hub", tmp_path / "c.jsonl")
        assert not (tmp_path / "c.jsonl").exists()

    def test_a_file_called_like_one_is_a_file(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("hub:x").write_bytes((DATA / "counterfact.json").read_bytes())
        run("hub:x", "o.jsonl")
        assert len(read_requests("o.jsonl")) == 2


def test_problems_with_their_tests_go_to_a_file_of_their_own(run, tmp_path):
    text = run(DATA / "codeupdatearena.jsonl", tmp_path / "o.jsonl", "--format", "codeupdatearena",
               "--to-problems", tmp_path / "p.jsonl")  # fmt: skip
    problems = read_problems(tmp_path / "p.jsonl")
    assert f"{tmp_path / 'p.jsonl'}: 3 programming problems with tests" in text
    assert [problem.trained for problem in problems] == [True, False, True]
    with pytest.raises(FormatError, match="--to-problems"):
        run(DATA / "counterfact.json", tmp_path / "c.jsonl", "--to-problems", tmp_path / "q.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


class TestListing:
    def test_all_formats(self, run):
        text = run("--list")
        for form in formats():
            assert all(part in text for part in (form.name, form.description, form.homepage, form.licence))
        assert "on the Hub: azhx/counterfact (train, test)" in text

    def test_one_format(self, run):
        text = run("--list", "--format", "mquake")
        assert "questions -> portability of the last rewrite" in text
        assert "new_answer_alias -> aliases of the portability probes" in text
        assert "relation_id: a Wikidata name" in text
        assert "knowedit" not in text


class TestUsage:
    @pytest.mark.parametrize("arguments", [[], [DATA / "zsre.json"], ["--hub"]])
    def test_two_files_are_needed(self, run, arguments):
        with pytest.raises(SettingError, match="name two files"):
            run(*arguments)

    def test_the_source_is_not_overwritten(self, run, tmp_path):
        path = tmp_path / "in.json"
        path.write_bytes((DATA / "counterfact.json").read_bytes())
        with pytest.raises(SettingError, match="is the file that is read"):
            run(path, tmp_path / "." / "in.json")

    def test_a_directory(self, run, tmp_path):
        with pytest.raises(IsADirectoryError, match="name a file in it"):
            run(DATA / "counterfact.json", tmp_path)

    def test_an_unknown_format(self, run, tmp_path):
        with pytest.raises(SettingError, match="did you mean 'rippleedits'"):
            run("--format", "rippleedit", DATA / "rippleedits.json", tmp_path / "o")
