"""One more section is one value: the page shows it, and the command reads its files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corsa_plugins.cli.app import main
from corsa_plugins.errors import SettingError
from corsa_plugins.report.page import Report, page
from corsa_plugins.report.sections import SECTIONS, in_order
from corsa_plugins.report.sources import SourceError, read_sources
from tests.support.html import ATTACK, Page
from tests.support.packages import write_package

FILE = """
from markupsafe import Markup

from corsa_plugins.report.kinds import Kind, has
from corsa_plugins.report.sections import Section


def read(file):
    return [(file.label, float(file.data["kilowatt_hours"]))], f"energy of {file.label}"


def render(rows):
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}: {} kWh</li>").format(*row) for row in rows))


energy = Section(
    name="energy", title="Energy", render=render,
    kinds=(Kind(name="energy", fits=has("kilowatt_hours"), read=read, names=("energy.json",), said="energy.json"),),
)
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path) -> Iterator[None]:
    write_package(
        tmp_path / "site", "corsa_test_energy", FILE, "[corsa_plugins.sections]\nenergy = corsa_test_energy:energy\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        SECTIONS.refresh()
        yield
    SECTIONS.refresh()
    sys.modules.pop("corsa_test_energy", None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "energy.json").write_text('{"kilowatt_hours": 1.5}')
    return folder


def test_a_page_shows_it_before_the_list_of_requests() -> None:
    names = [section.name for section in in_order()]
    assert names.index("harness") < names.index("energy") < names.index("answers")
    found = Page(page(Report("t", parts={"energy": [(ATTACK, 2.0)]})))
    assert found.headings == ["Energy"]
    assert f"{ATTACK}: 2.0 kWh" in "".join(found.words)
    assert found.count("img") == 0
    (link,) = [attributes["href"] for tag, attributes in found.elements if tag == "a"]
    assert link.removeprefix("#") in [attributes.get("id") for _, attributes in found.elements]


def test_its_files_are_read_by_name_and_in_folders(run: Path) -> None:
    for given, label in ((run, "run"), (f"Mine={run / 'energy.json'}", "Mine")):
        sources = read_sources([str(given)])
        assert sources.parts["energy"] == [(label, 1.5)]
        assert list(sources.given.values()) == [f"energy: energy of {label}"]


def test_corsa_report_shows_it_and_tells_of_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        main(["report", str(run), "-o", str(tmp_path / "page.html")])
    assert not done.value.code
    assert "run: 1.5 kWh" in (tmp_path / "page.html").read_text(encoding="utf-8")
    (run / "energy.json").write_text(json.dumps({"watts": 1}))
    with pytest.raises(SourceError, match=r"Understood are: .*; energy\.json"):
        read_sources([str(run)])
    (run / "energy.json").write_text(json.dumps({"kilowatt_hours": "much"}))
    with pytest.raises(SourceError, match=r"looks like energy, and is damaged: ValueError"):
        read_sources([str(run)])


def test_a_part_that_no_section_shows_is_a_mistake() -> None:
    with pytest.raises(SettingError, match=r"no section shows enrgy: the sections are results.*, energy"):
        page(Report("t", parts={"enrgy": [1]}))


def test_a_text_is_no_markup() -> None:
    plain = Page(page(Report("t", parts={"energy": [("<b>", 1.0)]}, notes=["<i>"])))
    assert plain.count("b") == plain.count("i") == 0
