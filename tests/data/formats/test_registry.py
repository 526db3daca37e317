"""A format of another package is one file and one entry point, and is found wherever formats are."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import typer

from corsa_plugins.cli.commands.convert import convert
from corsa_plugins.data.formats import FormatError, detect_format, format_names, formats, get_format, read_format
from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import MissingExtraError, SettingError
from tests.support.python import python

MINE = """
from corsa_plugins.data.formats.base import Format
from corsa_plugins.data.formats.building import case_id, make_request
from corsa_plugins.data.formats.fields import require_text


def convert(record, index, drops):
    prompt, new = require_text(record, "frage"), require_text(record, "antwort")
    return [make_request(drops, prompt=prompt, target_new=new, case_id=case_id(record, index))]


MINE = Format(
    name="mine", description="Questions in German", homepage="https://example.org", licence="none", obtain="a letter",
    mapping={"frage": "prompt", "antwort": "target_new"}, dropped={"quelle": "where it is from"},
    signatures=(("frage", "antwort"),), convert=convert,
)
COUNTERFACT = MINE
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another package with a format, installed as pip would; and one that is broken."""
    info = tmp_path / "corsa_test_formats-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corsa-test-formats\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[corsa_plugins.formats]\nmine = corsa_test_formats:MINE\ncounterfact = corsa_test_formats:COUNTERFACT\n"
        "misnamed = corsa_test_formats:MINE\nno-format = corsa_test_formats:convert\nbroken = corsa_test_broken:X\n"
    )
    (tmp_path / "corsa_test_formats.py").write_text(MINE)
    (tmp_path / "corsa_test_broken.py").write_text("raise ModuleNotFoundError('no datasets', name='datasets')\n")
    monkeypatch.syspath_prepend(tmp_path)
    record = {"frage": "Die Hauptstadt von Kasachstan ist", "antwort": "Astana", "quelle": "Atlas"}
    (tmp_path / "in.json").write_text(json.dumps([record]))
    return tmp_path


WANTED = [EditRequest(prompt="Die Hauptstadt von Kasachstan ist", target_new="Astana", case_id=0)]


class TestFromOutside:
    def test_it_is_read_by_name_and_by_its_fields(self, installed):
        assert read_format("mine", installed / "in.json").requests == WANTED
        assert read_format("MINE", installed / "in.json").dropped == {"quelle": 1}
        assert detect_format(installed / "in.json") == "mine"
        assert read_format(None, installed / "in.json").requests == WANTED

    def test_corsa_convert_takes_it_lists_it_and_tells_of_its_fields(self, installed, capsys):
        app = typer.Typer(rich_markup_mode=None)
        app.command()(convert)
        out = installed / "out.jsonl"
        app(["--format", "mine", str(installed / "in.json"), str(out)], standalone_mode=False)
        assert read_requests(out) == WANTED
        assert "quelle: 1 (where it is from)" in capsys.readouterr().out
        app(["--list"], standalone_mode=False)
        assert "mine\n  Questions in German\n  https://example.org" in capsys.readouterr().out
        app(["--list", "--format", "mine"], standalone_mode=False)
        assert "antwort -> target_new" in capsys.readouterr().out

    def test_it_is_in_the_help_and_in_the_message_about_an_unknown_format(self, installed):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
        command = [sys.executable, "-m", "corsa_plugins.cli", "convert", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        names = " ".join(done.stdout.split()).partition("The format of IN: ")[2].partition(".")[0].split(", ")
        assert names == format_names()
        assert "mine" in names
        with pytest.raises(SettingError, match=r"the formats are counterfact.*, mine"):
            get_format("zzz")
        (installed / "other.json").write_text('[{"a": 1}]')
        with pytest.raises(FormatError, match=r"the formats are counterfact.*, mine"):
            detect_format(installed / "other.json")

    def test_a_broken_one_hides_no_other_and_is_explained_when_it_is_wanted(self, installed, caplog):
        with caplog.at_level(logging.WARNING, logger="corsa_plugins"):
            names = [form.name for form in formats()]
        assert "mine" in names
        assert not {"broken", "no-format", "misnamed"} & set(names)
        assert all(name in caplog.text for name in ("broken", "no-format", "misnamed"))
        with pytest.raises(MissingExtraError, match="format broken needs datasets"):
            get_format("broken")
        with pytest.raises(SettingError, match=r"no-format of corsa_plugins\.formats is <function.*must be a Format"):
            get_format("no-format")
        with pytest.raises(SettingError, match="the format mine is offered as misnamed"):
            get_format("misnamed")

    def test_it_takes_no_name_of_ours(self, installed):
        assert get_format("counterfact").homepage == "https://rome.baulab.info"
        assert format_names().count("counterfact") == 1


def test_each_is_offered_under_its_own_name():
    assert [form.name for form in formats()] == format_names()


def test_their_names_are_known_without_loading_one():
    code = "import sys, corsa_plugins.data.formats.registry as r; r.format_names(); print('pydantic' in sys.modules)"
    assert python(code).strip() == "False"


def test_a_misspelled_name():
    with pytest.raises(SettingError, match="did you mean 'counterfact'"):
        get_format("conterfact")
    assert get_format("Multi_CounterFact").name == "multi-counterfact"
