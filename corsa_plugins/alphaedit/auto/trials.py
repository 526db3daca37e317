"""Edits on trial: made, measured, and taken back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp
from typing import TYPE_CHECKING, Any

from corsa_plugins.alphaedit.auto.facts import TrialFacts
from corsa_plugins.alphaedit.editor import AlphaEditor, PreservedKeys
from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.values.search import Values
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import score_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Trial", "Trials"]

_EFFICACY_WEIGHT, _KEPT_WEIGHT = 2.0, 3.0
"""Against new answers in other words: an edit that is not taken at all is none, and what it spoils is everywhere."""
_SURE = 0.8
"""The probability from which an answer counts in full. It is said from one half on; the rest is for what a real batch
has beside a trial: more edits, which take from one another."""


@dataclass(frozen=True)
class Trial:
    """What an edit of the trial facts did. Probabilities are geometric means over an answer's tokens.

    Attributes:
        what: The settings that were tried, in words.
        efficacy: How far the new answers are said behind their prompts: the mean of their probabilities as shares of
            0.8, each at most 1. Surer than that is not better, and costs what is kept.
        generality: Behind other wordings.
        kept: Mean over the watched facts of the share of the answer's probability that is left, at most 1.
        reached: The share of the facts whose value vector reaches its target.
    """

    what: str
    efficacy: float
    generality: float
    kept: float
    reached: float

    @property
    def score(self) -> float:
        """What is maximised."""
        return _EFFICACY_WEIGHT * self.efficacy + self.generality + _KEPT_WEIGHT * self.kept

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Trials:
    """Tries settings on a model and remembers what came of each; the model is left as it is.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        statistics: Of its preserved keys.
        facts: What is tried.
        report: Told of each trial.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        statistics: PreservedKeys,
        facts: TrialFacts,
        report: Callable[[Trial], None] | None = None,
    ) -> None:
        self._model, self._tokenizer, self._statistics, self._facts = model, tokenizer, statistics, facts
        self._report = report or (lambda trial: None)
        self._values: dict[tuple[int, ValueSettings], Values] = {}
        self._neighbours: dict[NeighbourSettings | None, tuple[EditRequest, ...]] = {}
        self._before: list[float] | None = None
        self.made: list[Trial] = []

    def values(self, settings: AlphaEditSettings) -> Values:
        """The value vectors of the trial facts at the last layer of the settings, each looked for once."""
        settings = _on_trial(settings)
        key = (settings.layers[-1], settings.values)
        if key not in self._values:
            editor = AlphaEditor(self._model, self._tokenizer, self._statistics, settings)
            self._values[key] = editor.values(self._facts.edits)
        return self._values[key]

    def try_out(self, settings: AlphaEditSettings, what: str) -> Trial:
        """Edit the trial facts, measure, and take it back."""
        settings = _on_trial(settings)
        pairs = self._facts.watched
        before = self._before = self._before or self._probabilities(pairs, settings)
        values = self.values(settings)
        editor = AlphaEditor(self._model, self._tokenizer, self._statistics, settings)
        edits, listed = self._facts.edits, settings.neighbours
        if listed not in self._neighbours:
            self._neighbours[listed] = editor.neighbours(edits)
        with editor.on_trial(edits, values, self._neighbours[listed]):
            won = self._probabilities([(each.prompt, each.target_new) for each in edits], settings)
            wordings = [(prompt, each.target_new) for each in edits for prompt in each.paraphrases]
            reworded = self._probabilities(wordings, settings)
            after = self._probabilities(pairs, settings)
        kept = [min(1.0, now / max(then, 1e-9)) for now, then in zip(after, before, strict=True)]
        trial = Trial(what, _said(won), _said(reworded), _mean(kept), float(values.reached.double().mean()))
        self.made.append(trial)
        self._report(trial)
        return trial

    def best(self, candidates: Sequence[tuple[AlphaEditSettings, str]]) -> tuple[AlphaEditSettings, Trial]:
        """The one with the highest score, the first of equals."""
        tried = [(settings, self.try_out(settings, what)) for settings, what in candidates]
        return max(tried, key=lambda pair: pair[1].score)

    def _probabilities(self, pairs: Sequence[tuple[str, str]], settings: AlphaEditSettings) -> list[float]:
        chat_template = bool(settings.values.chat_template)
        scores = score_targets(
            self._model, self._tokenizer, pairs, batch_size=settings.batch_size, chat_template=chat_template
        )
        return [exp(score.log_prob / max(score.n_tokens, 1)) for score in scores]


def _on_trial(settings: AlphaEditSettings) -> AlphaEditSettings:
    """One context, which is a third of the work; and nothing smoothed: that is decided for each batch by itself."""
    return replace(settings, smoothing=None, n_contexts=min(settings.n_contexts, 1))


def _said(probabilities: Sequence[float]) -> float:
    return _mean([min(1.0, probability / _SURE) for probability in probabilities])


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(len(numbers), 1)
