"""Drawing: matplotlib, without a screen and without its global state, into image files and into pages.

One engine for both, and a library's: a page with charts takes 0.4 s more for its import, and 30 ms for each chart. A
chart in a page is geometry alone; its colours are the page's style sheet's, which knows light and dark.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["css", "inline_svg", "new_figure", "write_figure"]

UNITS = 72
"""Of a chart in a page, to an inch of a figure."""


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of this size in inches; ``options`` are those of :class:`matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)


def write_figure(figure: Figure, path: str | PathLike[str], *, dpi: float = 150) -> Path:
    """Write a figure as PNG, SVG or PDF, by the ending of the name; without one, as PNG. Whole or not at all.

    Raises:
        SettingError: Figures are not written with this ending.
        OSError: The file cannot be written.
    """
    target = Path(path)
    ending = target.suffix.removeprefix(".").lower() or "png"
    if ending not in figure.canvas.get_supported_filetypes():
        raise SettingError(f"{target}: figures are PNG, SVG or PDF, by the ending of the name")
    image = BytesIO()
    figure.savefig(image, format=ending, dpi=dpi)
    return atomic_write_bytes(target, image.getvalue())


def css(name: str) -> str:
    """The ``gid`` of an artist that is drawn into a page, with these classes."""
    return f"{_CLASS}{name}"


def inline_svg(figure: Figure, *, title: str, notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """A figure as an SVG element for a page that knows its classes.

    Of its artists those with a ``gid`` of :func:`css` are in it. Nothing in it refers to anything or has an id or a
    style of its own, and the same figure gives the same text.

    Args:
        figure: Its texts hold what XML can hold, and are not taken for formulae (``parse_math=False``).
        title: Says what is to be seen, for those who do not see it.
        notes: By classes, a text for each marker or text of these classes, in order, shown where the pointer rests on
            it; an empty one is not.
    """
    from matplotlib import rc_context

    drawn = StringIO()
    with rc_context({"svg.fonttype": "none", "path.simplify": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's fonts are not these
        figure.savefig(drawn, format="svg", dpi=UNITS)
    root = ElementTree.fromstring(drawn.getvalue())
    width, height = (UNITS * side for side in figure.get_size_inches())
    chart = _element("svg", "chart", viewBox=f"0 0 {width:g} {height:g}", role="img", **{"aria-label": title})
    chart.extend(_artists(root, notes or {}))
    return ElementTree.tostring(chart, encoding="unicode")


_CLASS = "class:"
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


def _artists(root: ElementTree.Element, notes: Mapping[str, Sequence[str]]) -> Iterator[ElementTree.Element]:
    """The paths, markers and texts of artists with a class."""
    defined = (path for defs in root.iter(f"{_SVG}defs") for path in defs.iter(f"{_SVG}path"))
    shapes = {f"#{path.get('id')}": path for path in defined}
    unread = {classes: iter(texts) for classes, texts in notes.items()}
    for group in root.iter(f"{_SVG}g"):
        if not group.get("id", "").startswith(_CLASS):
            continue
        classes = group.get("id", "").removeprefix(_CLASS)
        for element in group.iter():
            if element.tag == f"{_SVG}use":  # a marker, whose shape is defined once
                marker = _path(shapes[element.get(_HREF, "")], classes)
                marker.set("transform", _short(f"translate({element.get('x')} {element.get('y')})"))
                yield _noted(marker, unread.get(classes))
            elif element.tag == f"{_SVG}path" and f"#{element.get('id')}" not in shapes:
                yield _path(element, classes)
            elif element.tag == f"{_SVG}text":
                yield _noted(_text(element, classes), unread.get(classes))


def _noted(element: ElementTree.Element, notes: Iterator[str] | None) -> ElementTree.Element:
    note = None if notes is None else next(notes, None)
    if note:
        ElementTree.SubElement(element, "title").text = note
    return element


def _path(element: ElementTree.Element, classes: str) -> ElementTree.Element:
    return _element("path", classes, d=_short(element.get("d", "")))


def _text(element: ElementTree.Element, classes: str) -> ElementTree.Element:
    anchor = re.search(r"text-anchor: (\w+)", element.get("style", ""))
    turn = element.get("transform", "")
    text = _element("text", classes, x=_short(element.get("x", "")), y=_short(element.get("y", "")))
    text.text = element.text
    if anchor:
        text.set("text-anchor", anchor[1])
    if not turn.startswith("rotate(-0 "):
        text.set("transform", _short(turn))
    return text


def _element(tag: str, classes: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.Element(tag, {"class": classes, **attributes})


_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def _short(numbers: str) -> str:
    """Coordinates to a tenth of a unit, on one line."""
    rounded = _NUMBER.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), numbers)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(rounded.split()))
