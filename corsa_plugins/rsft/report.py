"""What a run of R-SFT did to each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RSFTReport", "SampleReport", "undone_in_words"]

_LEARN_MORE = "raise learning_rate, epochs or steps, or lower loss_threshold"


@dataclass(frozen=True)
class SampleReport:
    """One sample's way through the finished epochs.

    Attributes:
        index: Its place among the requests.
        name: The request's name: case id or place, and prompt.
        steps: Steps taken in each epoch (k*_n of Eq. 3), at most K.
        losses: For each epoch the loss at each check, before the step it allowed or forbade, in nats.
        final_loss: The loss with the weights the model was left with.
        reached: Whether the loss was under tau at any check or is so in the end.
        said: Whether every token of the answer is the model's first choice, with the weights it was left with.
        said_in_training: Whether it was so after the last epoch, before the second stage; the same where there is none.
    """

    index: int
    name: str
    steps: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    final_loss: float
    reached: bool
    said: bool
    said_in_training: bool

    @property
    def verdict(self) -> str:
        """A plain sentence."""
        if self.said:
            return "said"
        return "reached in training, undone by the second stage" if self.said_in_training else "not learned"


@dataclass(frozen=True)
class RSFTReport:
    """What happened. Plain data: ``dataclasses.asdict`` makes it JSON.

    Attributes:
        samples: In the order of the requests.
        parameters: Names of the parameters that were trained.
        loss_threshold: tau.
        epochs: Finished epochs. Fewer than asked for after an interruption, or after an epoch in which every sample was
            under tau: nothing changed in it, so nothing would in those that follow, and they are not run.
        interrupted: Whether Ctrl-C ended the run and the finished epochs were kept.
        changed: The share of the parameters' elements that are not as they were before the run.
        weight: Of the second stage; 1 with a density of 1: there was none.
        density: Of the second stage; of ``"auto"`` the one that was chosen.
        tried: Of ``"auto"``: the densities that were tried, each with the number of requests that were said.
        kept_changed: Of ``keep_weight``: the watched prompts to which the model's first choice is another than before.
        kept_watched: How many were watched: none of them was held.
    """

    samples: tuple[SampleReport, ...]
    parameters: tuple[str, ...]
    loss_threshold: float
    epochs: int
    interrupted: bool = False
    changed: float = 1.0
    weight: float = 1.0
    density: float = 1.0
    tried: tuple[tuple[float, int], ...] = ()
    kept_changed: tuple[str, ...] = ()
    kept_watched: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RSFTReport:
        """From what ``dataclasses.asdict`` made of one, also by way of JSON."""
        samples = tuple(
            SampleReport(**{**each, "steps": tuple(each["steps"]), "losses": tuple(map(tuple, each["losses"]))})
            for each in data["samples"]
        )
        lists = {name: tuple(data[name]) for name in ("parameters", "kept_changed")}
        return cls(**{**data, **lists, "samples": samples, "tried": tuple(map(tuple, data["tried"]))})

    @property
    def steps(self) -> int:
        """Updates made in the finished epochs, over all samples (t of Algorithm 1)."""
        return sum(sum(sample.steps) for sample in self.samples)

    @property
    def never_reached(self) -> tuple[SampleReport, ...]:
        """Samples that were not under tau at any check and are not in the end."""
        return tuple(sample for sample in self.samples if not sample.reached)

    @property
    def above_in_the_end(self) -> tuple[SampleReport, ...]:
        """Samples not under tau with the weights the model was left with: never learned, or lost to later ones."""
        return tuple(sample for sample in self.samples if not sample.final_loss < self.loss_threshold)

    @property
    def said(self) -> int:
        """How many requests are said with the weights the model was left with."""
        return sum(sample.said for sample in self.samples)

    @property
    def undone(self) -> tuple[SampleReport, ...]:
        """Requests that were said after the last epoch, and are not any more since the second stage."""
        return tuple(sample for sample in self.samples if sample.said_in_training and not sample.said)

    @property
    def effect(self) -> str:
        """How much of the update was taken, in a sentence, with the cause and the cure where something was not."""
        count, undone = len(self.samples), len(self.undone)
        told = f"{self.said} of {count} requests said"
        if self.said == count:
            return told
        if not self.changed and not undone:
            why = "no step was taken" if not self.steps else "no weight changed by enough to be stored"
            return f"{told}: {why}, and the model is as it was, bit for bit; {_LEARN_MORE}"
        causes = [undone_in_words(undone, self.weight, self.density, auto=bool(self.tried))] if undone else []
        if missed := count - self.said - undone:
            causes.append(f"{missed} not learned ({_LEARN_MORE})")
        return f"{told}: {'; '.join(causes)}"

    def __str__(self) -> str:
        """One line."""
        under = len(self.samples) - len(self.above_in_the_end)
        return (
            f"R-SFT: {self.steps} steps in {self.epochs} epochs{' (interrupted)' if self.interrupted else ''}; "
            f"{under} of {len(self.samples)} samples end under {self.loss_threshold:g} nats, "
            f"{len(self.never_reached)} never were; {self.effect}"
        )


def undone_in_words(count: int, weight: float, density: float, *, auto: bool = False) -> str:
    """What the second stage did to ``count`` requests that were said before it, and what to do against it.

    Args:
        count: Of requests.
        weight: Of the second stage.
        density: Likewise.
        auto: Whether it was chosen by what is said.
    """
    scaled = "" if weight == 1 else f", scaled by {weight:g}"
    # of a density that was chosen, all have been tried
    cure = "a higher weight" if auto or density == 1 else 'a higher density, or "auto"'
    kept = f"keeping {100 * density:g} % of the change"
    return f"{count} reached in training, undone by {kept}{scaled} ({cure}, or more requests at once)"
