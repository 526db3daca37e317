"""What a command shows on the terminal."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["harmless", "show"]

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but the line feed: what moves the cursor, changes colours or the direction of writing."""

_LONGEST = 100_000
"""Characters of a line."""


def harmless(text: str) -> str:
    """The text without control characters: for lines with what stands in a file, or what a model answers."""
    return _CONTROLS.sub("", text)


def show(table: Any, *, folded: bool = True) -> None:
    """Print a rich table; where the output goes to a file there is no width to keep to, and no cell is cut.

    Labels, prompts and a model's answers are shown as they are: nothing in them is markup, and control characters are
    left out.

    Args:
        table: Anything that rich renders.
        folded: Whether cells may take several lines where the output goes to a file: with false, every row is one line,
            as long as it has to be. A terminal's width is kept to either way.
    """
    from rich.console import Console
    from rich.segment import Segment, Segments

    settings: dict[str, Any] = {"markup": False, "emoji": False}
    console = Console(**settings)
    if not console.is_terminal:
        console = Console(width=200, **settings)
        if not folded:
            needed = console.measure(table, options=console.options.update(width=_LONGEST)).maximum
            console = Console(width=max(200, needed), **settings)
    drawn = console.render(table)
    segments = (Segment(harmless(segment.text), segment.style) for segment in drawn if not segment.control)
    console.print(Segments(segments), end="")
