"""AlphaSet: records in which new knowledge conflicts with preserved or earlier edited knowledge, or with itself.

Source: AlphaEdit+: Model Editing in the Presence of Conflicting and Inconsistent Knowledge, appendix B.1; repository
``zjh-vinky/AlphaEdit_plus``: ``AlphaSet/K0.json`` (conflict with preserved knowledge, AlphaSet1), ``AlphaSet/KP.json``
(conflict with prior edits, AlphaSet2), ``AlphaSet/KI.json`` (inconsistency, AlphaSet3) and ``dsets/alphaset.py``,
which reads them.

A record has the fields of ZsRE (``subject``, ``src``, ``pred``, ``rephrase``, ``alt``, ``answers``, ``loc``,
``loc_ans``, ``cond``; see :mod:`corsa_plugins.data.formats.zsre`). As in that repository the target is
``answers[0]``, not ``alt``. Some subjects of the published files are not named in their question; their requests carry
no subject.
"""

from __future__ import annotations

from corsa_plugins.data.formats.base import Format
from corsa_plugins.data.formats.zsre import ZSRE_ANSWERS

__all__ = ["ALPHASET"]

ALPHASET = Format(
    name="alphaset",
    description="AlphaSet of AlphaEdit+: ZsRE and CounterFact records chosen or rewritten for conflicts",
    homepage="https://github.com/zjh-vinky/AlphaEdit_plus",
    licence="not stated",
    obtain="the repository's folder AlphaSet: K0.json, KP.json, KI.json",
    mapping=ZSRE_ANSWERS.mapping,
    dropped={**ZSRE_ANSWERS.dropped, "alt": "not the target in AlphaEdit+, which edits to the first of answers"},
    signatures=ZSRE_ANSWERS.signatures,
    convert=ZSRE_ANSWERS.convert,
)
