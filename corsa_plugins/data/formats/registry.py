"""The formats there are, by name. One more is a file with a value, a ``Format``, and a line.

Our lines are in this file. Another package's is an entry point in the group ``corsa_plugins.formats``: its name is the
format's, its value the ``Format``. A module is imported when its format is wanted or listed.
"""

from __future__ import annotations

import difflib
import logging
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from corsa_plugins.errors import SettingError, naming_extra

if TYPE_CHECKING:
    from corsa_plugins.data.formats.base import Format

__all__ = ["GROUP", "format_names", "formats", "get_format"]

logger = logging.getLogger(__name__)

GROUP = "corsa_plugins.formats"

# Where two read a record in the same way, the first one is what it is recognised as.
_OWN = {
    "counterfact": "counterfact:COUNTERFACT",
    "multi-counterfact": "counterfact:MULTI_COUNTERFACT",
    "easyedit": "counterfact:EASYEDIT",
    "zsre": "zsre:ZSRE",
    "zsre-answers": "zsre:ZSRE_ANSWERS",
    "zsre-kilt": "zsre:ZSRE_KILT",
    "alphaset": "alphaset:ALPHASET",
    "knowedit": "knowedit:KNOWEDIT",
    "mquake": "mquake:MQUAKE",
    "mquake-remastered": "mquake:MQUAKE_REMASTERED",
    "atoke-me": "atoke:ATOKE_ME",
    "rippleedits": "rippleedits:RIPPLE_EDITS",
    "codeupdatearena": "codeupdatearena:CODE_UPDATE_ARENA",
    "codeupdatearena-update": "codeupdatearena:CODE_UPDATE_ARENA_UPDATE",
}


def format_names() -> list[str]:
    """Every name that :func:`get_format` takes, ours first; nothing is imported."""
    return list(_entries())


def get_format(name: str) -> Format:
    """The format of this name; case and underscores do not matter.

    Raises:
        SettingError: There is none; the message names those there are. Or an entry point holds something else.
        MissingExtraError: Its module needs an optional dependency that is not installed.
    """
    wanted, entries = _plain(name), _entries()
    if wanted in entries:
        return _load(entries[wanted])
    close = difflib.get_close_matches(wanted, entries, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise SettingError(f"unknown format {name!r}: {hint}the formats are {', '.join(entries)}")


def formats() -> list[Format]:
    """Every format, ours first; one of another package that cannot be loaded is left out, with a warning in the log."""
    usable = []
    for entry in _entries().values():
        try:
            usable.append(_load(entry))
        except Exception as error:  # one broken package must not hide the others
            logger.warning("format %s of %s is left out: %s", entry.name, entry.value, error)
    return usable


def _entries() -> dict[str, EntryPoint]:
    """Where each format is. Another package takes no name of ours."""
    own = {name: EntryPoint(name, f"{__package__}.{value}", GROUP) for name, value in _OWN.items()}
    others = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return own | {_plain(entry.name): entry for entry in others if _plain(entry.name) not in own}


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _load(entry: EntryPoint) -> Format:
    from corsa_plugins.data.formats.base import Format

    with naming_extra(f"format {entry.name}"):
        value = entry.load()
    if not isinstance(value, Format):
        raise SettingError(f"the entry point {entry.name} of {GROUP} is {value!r}: it must be a Format")
    if value.name != entry.name:
        raise SettingError(f"the format {value.name} is offered as {entry.name}: give the entry point its name")
    return value
