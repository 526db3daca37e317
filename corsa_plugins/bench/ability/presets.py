"""The papers' tests of general ability, by a name each: lists of lm-evaluation-harness's own tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

__all__ = ["PRESETS", "with_presets"]

PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # papers/alphaedit-plus.md, B.4: six tasks, five of GLUE and MMLU; "NLI" is MultiNLI (Williams et al., 2018).
        "alphaedit-paper": ("sst2", "mrpc", "mmlu", "rte", "cola", "mnli"),
        # papers/corsa.md, 4.1: specificity is MMLU; that of code (5.3) is measured by running programs.
        "corsa-paper": ("mmlu",),
        # papers/model-merging-for-knowledge-editing.md, Table 1.
        "merging-paper": ("ceval-valid", "coqa", "drop", "squadv2", "logiqa"),
    }
)
"""Tasks by the name of their paper."""


def with_presets(names: Sequence[str]) -> list[str]:
    """Names of tasks, those of presets in the places of theirs, each once."""
    return list(dict.fromkeys(task for name in names for task in PRESETS.get(name, (name,))))
