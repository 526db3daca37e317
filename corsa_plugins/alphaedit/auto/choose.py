"""Settings of AlphaEdit+ for a model that nobody has tuned it on, chosen by edits on trial.

The papers' settings are in absolute units and of the models they were found on. Here everything is in units of the
model's own (``relative`` rates and ridges, shares of the spectrum), and what cannot be said for all models at once is
tried: where to edit, how far values have to go, how wide the null space is and how large the ridge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from corsa_plugins.alphaedit.auto.facts import TrialFacts, known_facts, own_facts
from corsa_plugins.alphaedit.auto.layers import windows
from corsa_plugins.alphaedit.auto.trials import Trial, Trials
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.alphaedit.values.settings import ValueSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.data.requests import EditRequest

__all__ = ["AUTO", "Choice", "choose_settings", "start_settings"]

logger = logging.getLogger(__name__)

AUTO, ALPHAEDIT = "auto", "AlphaEdit"
"""Name of the settings that are chosen, and what is said before a trial of those for AlphaEdit."""

_SHARES, _RIDGES = (0.5, 0.7, 0.9), (0.03, 0.1, 0.3, 1.0)
_EARLIER = 0.1
"""The loss at which the search for values may end: from there on answers that are said anyway only get surer, and what
that takes is in the update, for everything else to feel."""
_HALVINGS, _SMALLEST = 2, 0.05
"""How often the steps of that search are halved, and down to where: values end nearer to where they begin, for twice
the work."""
_FURTHER: Mapping[str, Any] = {"steps": 120, "lr": 0.05, "clamp": 4.0}
_CLEARLY, _WORTH_TWICE = 1e-3, 0.02
"""By how much a score has to be better to change what is there, and to double the work of every edit."""
_REACHED = 0.9
"""The share of targets that values are to reach."""


@dataclass(frozen=True)
class Choice:
    """Settings, and why.

    Attributes:
        settings: What was chosen, for AlphaEdit+.
        reason: In words.
        trials: What was tried, in order; empty where nothing could be.
        plain: What was chosen for AlphaEdit, which is bound by its null space as AlphaEdit+ is not; ``None`` where that
            was not tried.
    """

    settings: AlphaEditSettings
    reason: str
    trials: tuple[Trial, ...] = ()
    plain: AlphaEditSettings | None = None

    def alphaedit(self) -> Choice:
        """The same for AlphaEdit."""
        return replace(self, settings=self.plain or self.settings.alphaedit())


def start_settings(layers: Sequence[int], *, chat_template: bool | None = None) -> AlphaEditSettings:
    """Where the choice begins, and where it stays if nothing can be tried: everything in units of the model's own."""
    values = ValueSettings(
        steps=25,
        lr=0.2,
        lr_unit="relative",
        weight_decay=0.0,
        clamp=2.0,
        stop_loss=0.02,
        chat_template=chat_template,
    )
    return AlphaEditSettings(
        layers=tuple(layers),
        null_space=NullSpaceRule("share", 0.7),
        values=values,
        ridge=0.1,
        ridge_unit="relative",
        prior_weight=1.0,
        subject_keys=True,
        neighbours=NeighbourSettings(per_form=20),
    )


# Eight parameters: a model's, what is to be edited, and how the choice is made and told.
def choose_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    statistics: KeyStatistics,
    requests: Sequence[EditRequest] = (),
    *,
    layers: Sequence[int] = (),
    chat_template: bool | None = None,
    seed: int = 0,
    report: Callable[[Trial], None] | None = None,
) -> Choice:
    """Choose layers, values, null space and ridge by trial edits, which are taken back bit for bit.

    What holds of AlphaEdit+ need not of AlphaEdit: for that null space and ridge are chosen once more.

    Tried are well-known facts that the model turns out to know; where it knows too few of them, half of the requests,
    with one another's new answers. Best is what brings most new answers, also in other words, at the least loss among
    watched facts.

    Args:
        model: A causal language model. It is left as it is.
        tokenizer: Its tokenizer.
        statistics: Of its preserved keys; their layers are the ones to choose among.
        requests: What is to be edited, and so not tried unless nothing else can be.
        layers: To edit these and no others.
        chat_template: As in :class:`~corsa_plugins.alphaedit.values.settings.ValueSettings`.
        seed: Of which facts are tried.
        report: Told of each trial as it is made.

    Raises:
        CorsaError: What an edit raises.
    """
    chat = bool(chat_template)
    candidates = [tuple(layers)] if layers else windows(statistics.layers)
    start = start_settings(candidates[0], chat_template=chat_template)
    facts = _facts(model, tokenizer, requests, start, chat, seed)
    if facts is None:
        reason = "nothing could be tried: the model knows too few of the facts asked, and there are too few requests"
        logger.warning("%s; the settings are general ones, untried on this model", reason)
        return Choice(start, f"{reason}; general settings")
    trials = Trials(model, tokenizer, statistics, facts, report)
    start = _far_enough(trials, start)
    best, trial = trials.best([(replace(start, layers=window), f"layers {_range(window)}") for window in candidates])
    best, trial = _improved(trials, best, trial, [*_of_values(), *_of_space()])
    without = best.alphaedit()
    tried = trials.try_out(without, f"{ALPHAEDIT}, layers {_range(best.layers)}")
    plain, _ = _improved(trials, without, tried, _of_space(), f"{ALPHAEDIT}, ")
    assert best.null_space is not None  # it starts with one, and what is tried is how wide
    reason = (
        f"by {len(trials.made)} trial edits of {facts.source}: layers {_range(best.layers)}, null space the smallest "
        f"{100 * best.null_space.value:g} %, ridge {best.ridge:g}, values in {best.values.steps} steps to a loss of "
        f"{best.values.stop_loss:g}; new answers said {100 * trial.efficacy:.0f} %, reworded "
        f"{100 * trial.generality:.0f} %, watched facts {100 * trial.kept:.0f} % kept"
    )
    return Choice(best, reason, tuple(trials.made), plain)


def _facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    settings: AlphaEditSettings,
    chat: bool,
    seed: int,
) -> TrialFacts | None:
    subjects = [request.subject or "" for request in requests]
    facts = known_facts(model, tokenizer, subjects, chat_template=chat, seed=seed)
    if facts is None and requests:
        contexts = generate_contexts(model, tokenizer, n=settings.n_contexts, length=settings.context_length)
        facts = own_facts(model, tokenizer, requests, contexts, chat_template=chat, seed=seed)
    return facts


def _far_enough(trials: Trials, start: AlphaEditSettings) -> AlphaEditSettings:
    """With values that go further, where most targets are not reached."""
    if float(trials.values(start).reached.double().mean()) >= _REACHED:
        return start
    further = replace(start, values=replace(start.values, **_FURTHER))
    reached = [float(trials.values(settings).reached.double().mean()) for settings in (start, further)]
    return further if reached[1] > reached[0] else start


@dataclass(frozen=True)
class _Change:
    """Of settings: how, in words, and by how much a score has to be better for it."""

    make: Callable[[AlphaEditSettings], AlphaEditSettings]
    what: str
    worth: float = _CLEARLY


def _improved(
    trials: Trials, best: AlphaEditSettings, trial: Trial, changes: Iterable[_Change], of: str = ""
) -> tuple[AlphaEditSettings, Trial]:
    """After one change after the other, each kept if it is worth it; none is tried twice."""
    made = [best]
    for change in changes:
        other = change.make(best)
        if other in made:
            continue
        made.append(other)
        tried = trials.try_out(other, f"{of}layers {_range(best.layers)}, {change.what}")
        if tried.score > trial.score + change.worth:
            best, trial = other, tried
    return best, trial


def _of_values() -> Iterator[_Change]:
    yield _Change(_ending_earlier, f"values to a loss of {_EARLIER:g}")
    for halving in range(1, _HALVINGS + 1):
        yield _Change(_with_half_the_step, f"values in steps of 1/{2**halving}", _WORTH_TWICE)


def _of_space() -> Iterator[_Change]:
    for share in _SHARES:
        yield _Change(partial(_with_share, share), f"null space {share:g}")
    for ridge in _RIDGES:
        yield _Change(partial(_with_ridge, ridge), f"ridge {ridge:g}")


def _ending_earlier(settings: AlphaEditSettings) -> AlphaEditSettings:
    return replace(settings, values=replace(settings.values, stop_loss=_EARLIER))


def _with_half_the_step(settings: AlphaEditSettings) -> AlphaEditSettings:
    values = settings.values
    if values.lr / 2 < _SMALLEST:
        return settings
    return replace(settings, values=replace(values, steps=2 * values.steps, lr=values.lr / 2))


def _with_share(share: float, settings: AlphaEditSettings) -> AlphaEditSettings:
    return replace(settings, null_space=NullSpaceRule("share", share))


def _with_ridge(ridge: float, settings: AlphaEditSettings) -> AlphaEditSettings:
    return replace(settings, ridge=ridge)


def _range(layers: Sequence[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
