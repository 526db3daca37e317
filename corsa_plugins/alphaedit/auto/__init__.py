"""Settings that are chosen by edits on trial (``--settings auto``).

* :mod:`~corsa_plugins.alphaedit.auto.choose`: what is tried, and in which order;
* :mod:`~corsa_plugins.alphaedit.auto.facts`: on which facts;
* :mod:`~corsa_plugins.alphaedit.auto.trials`: an edit made, measured, and taken back;
* :mod:`~corsa_plugins.alphaedit.auto.kept`: the choice, beside the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from corsa_plugins.alphaedit.auto.choose import AUTO, Choice, choose_settings
from corsa_plugins.alphaedit.auto.kept import keep_choice, kept_choice, one_at_a_time
from corsa_plugins.alphaedit.auto.trials import Trial

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
    from corsa_plugins.data.requests import EditRequest

__all__ = ["AUTO", "Choice", "Trial", "choose_settings", "settings_for"]


# Seven parameters: those of a choice.
def settings_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    statistics: KeyStatistics,
    requests: Sequence[EditRequest] = (),
    *,
    layers: Sequence[int] = (),
    chat_template: bool | None = None,
    report: Callable[[Trial], None] | None = None,
) -> Choice:
    """The settings chosen for a model, from beside the statistics if they were chosen before.

    Where another process is choosing by the same statistics, this one waits for what it chooses.

    Arguments and errors are those of :func:`~corsa_plugins.alphaedit.auto.choose.choose_settings`.
    """
    with one_at_a_time(statistics):
        kept = kept_choice(statistics, layers, chat_template)
        if kept is not None:
            return kept
        choice = choose_settings(
            model, tokenizer, statistics, requests, layers=layers, chat_template=chat_template, report=report
        )
        keep_choice(choice, statistics, layers, chat_template)
    return choice
