"""What a run of R-SFT did to each sample."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RSFTReport", "SampleReport"]


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
    """

    index: int
    name: str
    steps: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    final_loss: float
    reached: bool


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
    """

    samples: tuple[SampleReport, ...]
    parameters: tuple[str, ...]
    loss_threshold: float
    epochs: int
    interrupted: bool = False

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

    def __str__(self) -> str:
        """One line."""
        under = len(self.samples) - len(self.above_in_the_end)
        return (
            f"R-SFT: {self.steps} steps in {self.epochs} epochs{' (interrupted)' if self.interrupted else ''}; "
            f"{under} of {len(self.samples)} samples end under {self.loss_threshold:g} nats, "
            f"{len(self.never_reached)} never were"
        )
