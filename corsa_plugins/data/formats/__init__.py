"""Published data sets of edits, read into edit requests.

Every format says which fields become what and which are dropped, and counts the dropped values::

    result = read_format("counterfact", "counterfact.json", limit=1000)
    result.requests[0].prompt, result.dropped, result.problems

``corsa convert`` does the same from the command line.
"""

from corsa_plugins.data.contradictions import first_of_contradictions, split_rounds
from corsa_plugins.data.formats.base import Format, FormatError, FormatResult, HubSource, Problem, RecordError
from corsa_plugins.data.formats.read import detect_format, read_format
from corsa_plugins.data.formats.registry import FORMATS, get_format

__all__ = [
    "FORMATS",
    "Format",
    "FormatError",
    "FormatResult",
    "HubSource",
    "Problem",
    "RecordError",
    "detect_format",
    "first_of_contradictions",
    "get_format",
    "read_format",
    "split_rounds",
]
