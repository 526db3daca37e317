"""Figures as files: by the ending of the name, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.drawing import css, inline_svg, new_figure, write_figure
from corsa_plugins.errors import SettingError
from tests.support.html import Page


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml"), ("a", b"\x89PNG")]
)
def test_the_ending_says_what_a_figure_is(tmp_path: Path, name: str, start: bytes) -> None:
    figure = new_figure(2, 1)
    figure.subplots().plot([1, 2])
    assert write_figure(figure, tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_unknown_ending_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"a\.doc: figures are PNG, SVG or PDF"):
        write_figure(new_figure(2, 1), tmp_path / "a.doc")
    assert list(tmp_path.iterdir()) == []


def test_a_page_gets_the_artists_that_have_a_class() -> None:
    figure = new_figure(2, 1)
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], gid=css("line"))
    axes.plot([1, 2], [2, 1])
    axes.plot([1, 2], [1, 2], "o", gid=css("mark"))
    svg = inline_svg(figure, title="a & b", notes={"mark": ["first", ""]})
    found = Page(svg)
    shapes = [attributes["class"] for tag, attributes in found.elements if tag == "path"]
    assert shapes == ["line", "mark", "mark"]
    assert found.words == ["first"]
    assert found.elements[0][1]["aria-label"] == "a & b"
    assert found.elements[0][1]["viewbox"] == "0 0 144 72"
    assert inline_svg(figure, title="a & b", notes={"mark": ["first", ""]}) == svg
