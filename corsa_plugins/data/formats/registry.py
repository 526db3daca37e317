"""The formats there are, by name."""

from __future__ import annotations

import difflib
from types import MappingProxyType

from corsa_plugins.data.formats.alphaset import ALPHASET
from corsa_plugins.data.formats.atoke import ATOKE_ME
from corsa_plugins.data.formats.base import Format
from corsa_plugins.data.formats.codeupdatearena import CODE_UPDATE_ARENA, CODE_UPDATE_ARENA_UPDATE
from corsa_plugins.data.formats.counterfact import COUNTERFACT, EASYEDIT, MULTI_COUNTERFACT
from corsa_plugins.data.formats.knowedit import KNOWEDIT
from corsa_plugins.data.formats.mquake import MQUAKE, MQUAKE_REMASTERED
from corsa_plugins.data.formats.rippleedits import RIPPLE_EDITS
from corsa_plugins.data.formats.zsre import ZSRE, ZSRE_ANSWERS, ZSRE_KILT
from corsa_plugins.errors import SettingError

__all__ = ["FORMATS", "get_format"]

FORMATS = MappingProxyType(
    {
        one.name: one
        for one in (
            COUNTERFACT,
            MULTI_COUNTERFACT,
            EASYEDIT,
            ZSRE,
            ZSRE_ANSWERS,
            ZSRE_KILT,
            ALPHASET,
            KNOWEDIT,
            MQUAKE,
            MQUAKE_REMASTERED,
            ATOKE_ME,
            RIPPLE_EDITS,
            CODE_UPDATE_ARENA,
            CODE_UPDATE_ARENA_UPDATE,
        )
    }
)
"""Name -> format. Where two read a record in the same way, the first one is what it is recognised as."""


def get_format(name: str) -> Format:
    """The format of this name; case and underscores do not matter.

    Raises:
        SettingError: There is none; the message names those there are.
    """
    wanted = name.strip().lower().replace("_", "-")
    if wanted in FORMATS:
        return FORMATS[wanted]
    close = difflib.get_close_matches(wanted, FORMATS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise SettingError(f"unknown format {name!r}: {hint}the formats are {', '.join(FORMATS)}")
