"""What an edit did, request by request, so that nobody has to wait for a metric to learn that one did nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EditReport", "LayerReport", "RequestReport", "verdict", "warn_not_edited", "warn_unprotected"]

logger = logging.getLogger(__name__)

HIGH_CONFLICT = 0.9
"""From here on a conflict is named as the likely cause of an edit that was not taken."""

NEARLY_GONE = 0.5
"""Of a protected share less than this a warning is given."""

_MAX_WARNINGS = 10


@dataclass(frozen=True)
class LayerReport:
    """What the solve did at one layer.

    Attributes:
        layer: The block.
        width: d_in.
        null_space: Eigenvectors in the null space before the search.
        added: Eigenvectors that were added to it, in full or graded.
        ridge: lambda, absolute.
        objective: Of Eq. 7 at the first smoothed target, before the search and after it.
        prior_weight: Mean of Lambda_p over the earlier edits; ``None`` without any.
        smoothing_step: t of the smoothed target that was chosen; ``None`` where no request was smoothed.
        validation_scores: By t, of the smoothed targets that were tried.
        graded: How many they are where each counts by how far it was added; ``None`` where that was not reported.
        protected: The share of the energy of preserved keys, their mean squared norm, that edits do not reach: before
            anything was added, and after. ``None`` where the null space does not say.
        experts: Of several routed experts, those whose weights were changed; ``None`` where the layer has no several.
    """

    layer: int
    width: int
    null_space: int
    added: int
    ridge: float
    objective: tuple[float, float]
    prior_weight: float | None
    smoothing_step: int | None
    validation_scores: tuple[float, ...]
    graded: float | None = None
    protected: tuple[float, float] | None = None
    experts: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """What was added, and what stays protected."""
        found = f"layer {self.layer}: added {self.added} of {self.width - self.null_space}"
        if self.graded is not None and self.graded < self.added - 1e-9:
            found += f" by degrees, as much as {self.graded:.1f} in full"
        if self.protected is not None:
            found += ", protected share {:.2f} -> {:.2f}".format(*self.protected)
        if self.experts is not None:
            found += f", in experts {', '.join(map(str, self.experts))}"
        return found

    @property
    def unprotected(self) -> str | None:
        """What is wrong, and the cure, where the edit may reach most of what it should spare; else ``None``."""
        if self.protected is None:
            return None
        before, after = self.protected
        rest = self.width - self.null_space
        all_in_full = bool(rest) and self.added == rest and (self.graded is None or self.graded > self.added - 1e-9)
        if before < NEARLY_GONE:
            return (
                f"layer {self.layer}: the null space itself holds {100 * (1 - before):.0f} % of the energy of the keys "
                "to preserve, and edits may write all over it: give null_space a smaller value, or choose it by energy "
                'such as NullSpaceRule("energy", 0.02)'
            )
        if after < NEARLY_GONE or all_in_full:
            return (
                f"layer {self.layer}: {self.added} of {rest} eigenvectors were added to the null space, and "
                f"{100 * after:.0f} % of the energy of the keys to preserve stays protected, where it was "
                f"{100 * before:.0f} %: leave search.threshold out, so that the price decides, or give search a limit "
                "or a larger weight"
            )
        return None


@dataclass(frozen=True)
class RequestReport:
    """What became of one request. Conflicts are the highest over the edited layers.

    Attributes:
        index: Its number among the requests of the batch.
        name: Case id or number, and prompt.
        prompt: The edit prompt.
        target_new: The answer wanted.
        value_probability: Of target_new (the product over its tokens) behind the prompt, with v* in place, as it was
            found: the most the edit can reach.
        preserved_conflict: s(k, K0) of Eq. 3 over the sample of preserved keys; ``None`` without a sample.
        subspace_conflict: The share of the key outside the null space, sqrt(1 - |Pk|^2 / |k|^2) (Eq. 6).
        prior_conflict: s(k, Kp) with the edits in force before; ``None`` without any.
        prior_conflict_with: The name of that earlier request.
        batch_conflict: s with the other requests of the batch; ``None`` without any.
        batch_conflict_with: The name of that other request.
        inconsistency: |r| = |v* - Wk| before the edit, at the output of the last edited block, or of its FFN's down map
            where a norm or a scale follows that.
        smoothing: beta(t) that was used, by layer in their order; 0 leaves the target as it is.
        residual: |v* - Wk| after the edit.
        answer_before: What the model said to the prompt; ``None`` if it was not asked.
        answer_after: What it says now.
        known_before: Whether every token of target_new was the most likely one before.
        edited: Whether it is so now.
        verdict: In words.
        value_scale: What v* was multiplied by to have the reference norm, 0 where it was left out; ``None``: nothing.
    """

    index: int
    name: str
    prompt: str
    target_new: str
    value_probability: float
    preserved_conflict: float | None
    subspace_conflict: float
    prior_conflict: float | None
    prior_conflict_with: str | None
    batch_conflict: float | None
    batch_conflict_with: str | None
    inconsistency: float
    smoothing: tuple[float, ...]
    residual: float
    answer_before: str | None
    answer_after: str | None
    known_before: bool
    edited: bool
    verdict: str
    value_scale: float | None = None


def verdict(report: RequestReport, reach: float) -> str:
    """A plain sentence: edited, known already, or why probably not."""
    if report.edited:
        return "known already" if report.known_before else "edited"
    if report.value_scale == 0:
        return (
            "left out: its value vector is longer than the reference norm by more than norm_anchor.skip_over allows; "
            "raise that, or lower the values' clamp"
        )
    if report.value_probability < reach:
        return (
            f"out of reach: even with its value vector the target has probability {report.value_probability:.3g}; "
            "try more value steps, a larger clamp or other layers"
        )
    left = report.residual / report.inconsistency if report.inconsistency else 0.0
    remains = f"not taken: {100 * left:.0f} % of its residual remains"
    if (report.prior_conflict or 0) >= HIGH_CONFLICT:
        return (
            f"{remains}; it conflicts with the earlier edit {report.prior_conflict_with} ({report.prior_conflict:.2f})"
        )
    if (report.batch_conflict or 0) >= HIGH_CONFLICT:
        return f"{remains}; it conflicts with {report.batch_conflict_with} ({report.batch_conflict:.2f})"
    if report.subspace_conflict >= HIGH_CONFLICT:
        return f"{remains}; its key lies in the space to preserve ({report.subspace_conflict:.2f})"
    if report.value_scale is not None and report.value_scale < 1:
        return f"{remains}; its value vector was scaled by {report.value_scale:.2f}, to the reference norm"
    if any(report.smoothing):
        return f"{remains}; its target was smoothed by {max(report.smoothing):.2f}"
    return f"{remains}; a smaller ridge takes edits further"


@dataclass(frozen=True)
class EditReport:
    """What one batch did.

    Attributes:
        batch: Its name.
        requests: In the order given.
        layers: In ascending order.
    """

    batch: str
    requests: tuple[RequestReport, ...]
    layers: tuple[LayerReport, ...]

    @property
    def not_edited(self) -> tuple[RequestReport, ...]:
        """Requests the model does not answer with target_new now."""
        return tuple(request for request in self.requests if not request.edited)

    @property
    def effect(self) -> str:
        """What became of the batch, in a sentence: how much of it was taken, and the cause where nothing was."""
        count = len(self.requests)
        edited = count - len(self.not_edited)
        told = f"{edited} of {count} requests edited"
        known = sum(request.known_before and request.edited for request in self.requests)
        if known == count:
            return f"{told}: the model knew all of them already"
        if edited:
            return told
        # "...; its key lies in the space to preserve (0.97)": without the figure, which is each request's own
        reasons = Counter(request.verdict.partition("; ")[2].partition(" (")[0] for request in self.requests)
        return f"{told}: the batch did nothing that was asked for; most often: {reasons.most_common(1)[0][0]}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back, also through JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EditReport:
        """The report of :meth:`as_dict`'s data."""
        return cls(
            data["batch"],
            tuple(RequestReport(**{**r, "smoothing": tuple(r["smoothing"])}) for r in data["requests"]),
            tuple(
                LayerReport(
                    **{
                        **layer,
                        "objective": tuple(layer["objective"]),
                        "validation_scores": tuple(layer["validation_scores"]),
                        "protected": tuple(layer["protected"]) if layer.get("protected") else None,
                        "experts": None if layer.get("experts") is None else tuple(layer["experts"]),
                    }
                )
                for layer in data["layers"]
            ),
        )

    def table(self) -> Any:
        """A :class:`rich.table.Table`, one row a request."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=str(self))
        for heading in (
            "request",
            "target",
            "p(v*)",
            "K0",
            "K0 sub.",
            "Kp",
            "batch",
            "|r|",
            "left",
            "answer",
            "verdict",
        ):
            table.add_column(heading)
        for r in self.requests:
            row = [
                r.name,
                r.target_new,
                f"{r.value_probability:.2f}",
                *(("-" if c is None else f"{c:.2f}") for c in (r.preserved_conflict, r.subspace_conflict)),
                *(("-" if c is None else f"{c:.2f}") for c in (r.prior_conflict, r.batch_conflict)),
                f"{r.inconsistency:.3g}",
                f"{r.residual:.3g}",
                "-" if r.answer_after is None else r.answer_after,
                r.verdict,
            ]
            table.add_row(*map(Text, row))
        return table

    def __str__(self) -> str:
        """One line."""
        edited = len(self.requests) - len(self.not_edited)
        layers = "; ".join(map(str, self.layers))
        return f"batch {self.batch}: {edited} of {len(self.requests)} requests edited; eigenvectors, {layers}"


def warn_unprotected(report: EditReport) -> None:
    """Log the layers where edits may reach most of what they should spare."""
    for layer in report.layers:
        if layer.unprotected:
            logger.warning("%s", layer.unprotected)


def warn_not_edited(report: EditReport, reach: float) -> None:
    """Log the requests that were not taken; of targets out of reach the search for values has warned already."""
    if report.requests and len(report.not_edited) == len(report.requests):
        logger.warning("batch %s: %s", report.batch, report.effect)
    missed = [request for request in report.not_edited if request.value_probability >= reach]
    for request in missed[:_MAX_WARNINGS]:
        logger.warning("%s: %s", request.name, request.verdict)
    if len(missed) > _MAX_WARNINGS:
        logger.warning("... nor were %d more requests taken; see the report", len(missed) - _MAX_WARNINGS)
