"""General ability: lm-evaluation-harness on a model in memory, before and after an edit.

Needs the extra ``eval``. The tasks are the harness's own, by its names (``"mmlu"``, ``"hellaswag"``), or task files of
yours. What was asked can be kept in a file, and is not asked again: the harness may take hours.

* :mod:`~corsa_plugins.bench.ability.scores`: scores, what changed in them, and both as plain data;
* :mod:`~corsa_plugins.bench.ability.tasks`: which tasks there are, and what their files hold;
* :mod:`~corsa_plugins.bench.ability.presets`: the papers' lists of tasks;
* :mod:`~corsa_plugins.bench.ability.harness`: asking a model;
* :mod:`~corsa_plugins.bench.ability.kept`: the file of what was asked already;
* :mod:`~corsa_plugins.bench.ability.table`: scores for the terminal.
"""

from corsa_plugins.bench.ability.harness import Harness, general_ability
from corsa_plugins.bench.ability.kept import HarnessFileError, load_ability
from corsa_plugins.bench.ability.presets import PRESETS
from corsa_plugins.bench.ability.scores import (
    Ability,
    AbilityChange,
    ability_change,
    ability_summary,
    compare_ability,
    is_stderr,
    plain_ability,
    read_ability,
    stderr_of,
)
from corsa_plugins.bench.ability.table import ability_table

__all__ = [
    "PRESETS",
    "Ability",
    "AbilityChange",
    "Harness",
    "HarnessFileError",
    "ability_change",
    "ability_summary",
    "ability_table",
    "compare_ability",
    "general_ability",
    "is_stderr",
    "load_ability",
    "plain_ability",
    "read_ability",
    "stderr_of",
]
