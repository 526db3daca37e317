"""Choosing the requests of a set, and measuring how hard they are."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest, RequestError, input_key, normalise_whitespace
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.manifest import checksums, versions
from corsa_plugins.sealed import write_sealed
from corsa_plugins.settings import Settings, Share

if TYPE_CHECKING:
    from corsa_plugins.alphaedit.editor import AlphaEditor

__all__ = ["ConflictPlan", "ConflictSet", "Kind", "about_file", "conflict_set", "figures_file", "first_of_each_prompt"]

Kind = Literal["preserved", "prior", "inconsistent"]

FIGURES = ("preserved_conflict", "subspace_conflict", "prior_conflict", "inconsistency")
_HARD_BY = {"preserved": "subspace_conflict", "prior": "prior_conflict"}
"""What the hard ones are chosen by; those of the third kind by the residual at a layer that is asked for."""

RESIDUAL_AT = 3
"""The edited layer, counted from 1, at which the paper measures the residuals of AlphaSet3."""


@dataclass(frozen=True)
class ConflictPlan(Settings):
    """Which set to build.

    Attributes:
        kind: What the hard ones are chosen by.
        size: Number of requests in the set.
        hard_share: The share of hard ones, those of the highest figures; the others are drawn from the rest.
        residual_at: For ``inconsistent``: at which of the edited layers, counted from 1, residuals are measured; by
            default the third, as in the paper, or the last where there are fewer.
        seed: Of the draw and of the order.

    Raises:
        SettingError: An unknown kind, a share outside [0, 1], or ``residual_at`` with another kind.
    """

    kind: Kind
    size: int
    hard_share: Share = 0.2
    residual_at: int | None = None
    seed: int = 0

    def check(self) -> None:
        if self.residual_at is not None and self.kind != "inconsistent":
            raise SettingError("--residual-at goes with inconsistent")

    @property
    def n_hard(self) -> int:
        """How many of the requests are to be hard ones."""
        return round(self.hard_share * self.size)


@dataclass(frozen=True)
class ConflictSet:
    """Requests, hard and random ones mixed.

    Attributes:
        kind: What is hard about them.
        requests: In random order.
        hard: For each, whether it was chosen as hard.
        means: Over all of them, as in the paper's Table 1: ``preserved_conflict`` (Eq. 3), ``subspace_conflict``
            (Eq. 6), ``prior_conflict`` and ``inconsistency`` (before anything is edited); ``None`` where there is
            nothing to measure against.
        figures: The same of each.
        about: What it was made by and of, plain data for JSON: the plan, its seed, the model's fingerprint, the
            editor's settings and the edits in force, the candidates.
    """

    kind: Kind
    requests: tuple[EditRequest, ...]
    hard: tuple[bool, ...]
    means: dict[str, float | None]
    figures: tuple[Mapping[str, float | None], ...] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def table(self) -> Any:
        """A :class:`rich.table.Table`: means over the hard ones, over the others, and over all."""
        from rich.table import Table

        by = _HARD_BY.get(self.kind)
        note = "; the hard ones are the highest in *" if by else ""
        table = Table("", title=f"{self.kind}: mean conflicts of {len(self.requests)} requests{note}")
        table.add_column("requests", justify="right")
        for name, heading in zip(
            FIGURES, ("K0 (Eq. 3)", "K0 subspace (Eq. 6)", "earlier edits", "inconsistency"), strict=True
        ):
            table.add_column(f"{heading} *" if name == by else heading, justify="right")
        for name, wanted in (("hard", (True,)), ("random", (False,)), ("all", (True, False))):
            rows = [row for row, hard in zip(self.figures, self.hard, strict=True) if hard in wanted]
            means = [_mean([row[figure] for row in rows]) for figure in FIGURES]
            table.add_row(name, str(len(rows)), *("-" if mean is None else f"{mean:.3g}" for mean in means))
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the requests to ``path`` and, beside it, a line of figures for each, ``hard.figures.jsonl``, and what
        they were made by and of, ``hard.about.json``.

        Returns:
            The path of the figures.

        Raises:
            RequestError: Requests contradict each other (:func:`first_of_each_prompt`).
            OSError: A file cannot be written.
        """
        file = Path(path)
        write_requests(file, self.requests)
        rows = (
            {"name": request.name(number), "hard": hard, **figures}
            for number, (request, hard, figures) in enumerate(
                zip(self.requests, self.hard, self.figures, strict=True), start=1
            )
        )
        figures = figures_file(file)
        atomic_write_text(figures, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        made = {**self.about, "versions": versions(), "sha256": checksums(file.parent, [file.name, figures.name])}
        write_sealed(about_file(file), made)
        return figures


def figures_file(path: Path) -> Path:
    """Where the figures of a set at ``path`` are: beside it."""
    return path.with_name(f"{path.stem}.figures.jsonl")


def about_file(path: Path) -> Path:
    """Where it says what a set at ``path`` was made by and of: beside it."""
    return path.with_name(f"{path.stem}.about.json")


def first_of_each_prompt(requests: Iterable[EditRequest]) -> list[EditRequest]:
    """The requests without later ones of the same prompt: none contradicts another, so a set can be read back."""
    first: dict[str, EditRequest] = {}
    for request in requests:
        first.setdefault(normalise_whitespace(request.prompt), request)
    return list(first.values())


def conflict_set(
    editor: AlphaEditor,
    candidates: Sequence[EditRequest],
    plan: ConflictPlan,
    *,
    exclude: Iterable[EditRequest] = (),
    progress: bool = False,
) -> ConflictSet:
    """Build a set from candidates, at the editor's present weights and state. Nothing is changed.

    Args:
        editor: Its statistics, state and settings say what conflicts.
        candidates: To choose from; more than the plan's ``size``, or nothing is chosen. Those that ask for what an edit
            in force has done already are no candidates.
        plan: Which set.
        exclude: Requests of other sets, whose prompts are not to come again.
        progress: Show progress bars.

    Raises:
        SettingError: No such layer, or ``prior`` without edits in force at the layers of the editor's settings.
        RequestError: Fewer candidates than ``size``, or candidates without subjects.
    """
    n_layers = len(editor.settings.layers)
    layer = min(RESIDUAL_AT, n_layers) if plan.residual_at is None else plan.residual_at
    if not 1 <= layer <= n_layers:
        raise SettingError(f"residual_at is {layer}: it must be 1 to {n_layers}, the number of edited layers")
    candidates = _fresh(candidates, exclude, editor)
    if not 1 <= plan.size <= len(candidates):
        raise RequestError(f"a set of {plan.size} from {len(candidates)} candidates: ask for fewer, or give more")
    if plan.kind == "prior" and not editor.state.batches:
        raise SettingError("there are no edits in force for new ones to conflict with: edit something first")
    figures = _figures(editor, candidates, plan.kind, layer, progress)
    order = sorted(range(len(candidates)), key=lambda index: -figures[index])
    rng = random.Random(f"conflict set {plan.seed}")
    chosen = [(index, True) for index in order[: plan.n_hard]]
    chosen += [(index, False) for index in rng.sample(order[plan.n_hard :], plan.size - plan.n_hard)]
    rng.shuffle(chosen)
    requests = tuple(candidates[index] for index, _ in chosen)
    rows = editor.diagnose(requests, values=True, progress=progress).rows()
    of_each = tuple({name: row[name] for name in FIGURES} for row in rows)
    means = {name: _mean([row[name] for row in of_each]) for name in FIGURES}
    about = {
        "seed": plan.seed,
        "settings": {name: value for name, value in plan.as_dict().items() if name != "seed"},
        "editor": editor.settings.as_dict(),
        "fingerprint": editor.state.fingerprint.as_dict(),
        "edits": [batch.name for batch in editor.state.batches],
        "candidates": input_key(candidates)["requests"],
    }
    return ConflictSet(plan.kind, requests, tuple(hard for _, hard in chosen), means, of_each, about)


def _figures(
    editor: AlphaEditor, candidates: Sequence[EditRequest], kind: Kind, layer: int, progress: bool
) -> list[float]:
    """What the hard ones are chosen by, of each candidate."""
    if kind == "inconsistent":
        return editor.residuals(candidates, layer, progress=progress)
    rows = editor.diagnose(candidates, progress=progress).rows()
    if kind == "prior" and all(row["prior_conflict"] is None for row in rows):
        raise SettingError(
            f"no edit in force changed layers {', '.join(map(str, editor.settings.layers))}: there is nothing for new "
            "ones to conflict with; edit something there first"
        )
    # Every key shares most of its direction with some preserved one where the model is small: Eq. 6 is the finer.
    return [row[_HARD_BY[kind]] or 0.0 for row in rows]


def _fresh(
    candidates: Sequence[EditRequest], exclude: Iterable[EditRequest], editor: AlphaEditor
) -> tuple[EditRequest, ...]:
    """Candidates of which no other set has the prompt, and no edit in force prompt and answer."""
    used = {normalise_whitespace(request.prompt) for request in exclude}
    done = {_prompt_and_answer(request) for batch in editor.state.batches for request in batch.requests}
    return tuple(
        request
        for request in candidates
        if normalise_whitespace(request.prompt) not in used and _prompt_and_answer(request) not in done
    )


def _prompt_and_answer(request: EditRequest) -> tuple[str, str]:
    return normalise_whitespace(request.prompt), normalise_whitespace(request.target_new)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
