"""Published data sets of edits, read into edit requests.

Every format says which fields become what and which are dropped, and counts the dropped values::

    result = read_format("counterfact", "counterfact.json", limit=1000)
    result.requests[0].prompt, result.dropped, result.problems

``corsa convert`` does the same from the command line. Names are loaded when they are first used, as the command line
lists the formats without reading one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corsa_plugins.data.contradictions import first_of_contradictions, split_rounds
    from corsa_plugins.data.formats.base import Format, FormatError, FormatResult, HubSource, Problem, RecordError
    from corsa_plugins.data.formats.convert import Conversion, convert_to_requests
    from corsa_plugins.data.formats.read import detect_format, read_format
    from corsa_plugins.data.formats.registry import format_names, formats, get_format

_HOME = {
    "Conversion": "formats.convert",
    "Format": "formats.base",
    "FormatError": "formats.base",
    "FormatResult": "formats.base",
    "HubSource": "formats.base",
    "Problem": "formats.base",
    "RecordError": "formats.base",
    "convert_to_requests": "formats.convert",
    "detect_format": "formats.read",
    "first_of_contradictions": "contradictions",
    "format_names": "formats.registry",
    "formats": "formats.registry",
    "get_format": "formats.registry",
    "read_format": "formats.read",
    "split_rounds": "contradictions",
}

__all__ = [
    "Conversion",
    "Format",
    "FormatError",
    "FormatResult",
    "HubSource",
    "Problem",
    "RecordError",
    "convert_to_requests",
    "detect_format",
    "first_of_contradictions",
    "format_names",
    "formats",
    "get_format",
    "read_format",
    "split_rounds",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"corsa_plugins.data.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
