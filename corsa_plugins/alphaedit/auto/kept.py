"""Choices of settings, kept in the folder of the statistics they were made with: a model is tried once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from corsa_plugins.alphaedit.auto.choose import Choice
from corsa_plugins.alphaedit.auto.trials import Trial
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text, sole_use
from corsa_plugins.parsing import json_value

__all__ = ["KEPT", "keep_choice", "kept_choice", "one_at_a_time"]

logger = logging.getLogger(__name__)

KEPT = "auto.json"
"""Name of the file in the folder of statistics."""

_VERSION = 2


def kept_choice(statistics: KeyStatistics, layers: Sequence[int], chat_template: bool | None) -> Choice | None:
    """What was chosen earlier for this model, these layers and this form of prompts; ``None`` where nothing was.

    A file that cannot be read, or is of another model or version, counts as none.

    Args:
        statistics: From a folder.
        layers: The layers that were asked for; empty for any.
        chat_template: As it was given to the choice.
    """
    if statistics.folder is None:
        return None
    try:
        content = json_value((statistics.folder / KEPT).read_text(encoding="utf-8"))
        kept = content["choices"][_key(layers, chat_template)]
        if content["version"] != _VERSION or content["of"] != _identity(statistics):
            return None
        trials = tuple(Trial(**trial) for trial in kept["trials"])
        plain = None if kept["plain"] is None else AlphaEditSettings.from_dict(kept["plain"])
        return Choice(AlphaEditSettings.from_dict(kept["settings"]), kept["reason"], trials, plain)
    except (OSError, ValueError, KeyError, TypeError, SettingError):
        return None


def keep_choice(choice: Choice, statistics: KeyStatistics, layers: Sequence[int], chat_template: bool | None) -> None:
    """Keep a choice beside the statistics; one that cannot be kept is made again the next time, and a warning says so.

    Args:
        choice: With trials; one without is not kept.
        statistics: From a folder; those that are not are of this process alone.
        layers: As for :func:`kept_choice`.
        chat_template: Likewise.
    """
    folder, of = statistics.folder, _identity(statistics)
    if not choice.trials or of is None or folder is None:
        return
    try:
        content = json_value((folder / KEPT).read_text(encoding="utf-8"))
        choices = content["choices"] if content["of"] == of and content["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        choices = {}
    trials = [trial.as_dict() for trial in choice.trials]
    choices[_key(layers, chat_template)] = {
        "settings": choice.settings.as_dict(),
        "plain": None if choice.plain is None else choice.plain.as_dict(),
        "reason": choice.reason,
        "trials": trials,
    }
    text = json.dumps({"version": _VERSION, "of": of, "choices": choices}, indent=1, ensure_ascii=False)
    try:
        atomic_write_text(folder / KEPT, text + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): the settings are chosen anew the next time", folder / KEPT, error)


def one_at_a_time(statistics: KeyStatistics) -> AbstractContextManager[None]:
    """Within the block no other process chooses by the same folder of statistics; one that comes waits.

    Args:
        statistics: Those that are not from a folder are of this process alone.
    """
    return nullcontext() if statistics.folder is None else sole_use(statistics.folder, wait=True)


def _key(layers: Sequence[int], chat_template: bool | None) -> str:
    return f"{'any' if not layers else ' '.join(map(str, layers))}, {'chat' if chat_template else 'plain'}"


def _identity(statistics: KeyStatistics) -> str | None:
    """Of the model and of the layers there are to choose among."""
    if statistics.fingerprint is None:
        return None
    content = json.dumps([statistics.fingerprint.as_dict(), statistics.layers], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
