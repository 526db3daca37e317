"""Sets of edit requests that are hard for a given model and edit state (AlphaEdit+ paper, 4.1 and B.1, AlphaSet1-3).

The paper's sets mix a fifth of hard requests with random ones:

* ``preserved`` (AlphaSet1): keys in high conflict with the preserved ones;
* ``prior`` (AlphaSet2): rewordings of facts that were edited before, with other answers (:func:`rewordings`);
* ``inconsistent`` (AlphaSet3): the largest residuals ||v* - Wk||, measured when the edit comes to its third layer.

No request is in two of the sets (``exclude``). With each comes a validation set (:func:`validation_probes`).

There the hard requests of the first two were written by a language model. Here they are chosen from the candidates by
the same figures, so that a set can be built from any requests file; a rewording is one of the request's own validation
prompts, and its answer is another request's of the same relation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, Literal, get_args

from corsa_plugins.data.requests import EditRequest, Probe, RequestError, normalise_whitespace
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.alphaedit.editor import AlphaEditor

__all__ = ["ConflictSet", "Kind", "conflict_set", "reworded", "rewordings", "validation_probes"]

Kind = Literal["preserved", "prior", "inconsistent"]

FIGURES = ("preserved_conflict", "subspace_conflict", "prior_conflict", "inconsistency")
_HARD_BY = {"preserved": "subspace_conflict", "prior": "prior_conflict"}
"""What the hard ones are chosen by; those of the third kind by the residual at a layer that is asked for."""

RESIDUAL_AT = 3
"""The edited layer, counted from 1, at which the paper measures the residuals of AlphaSet3."""


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
    """

    kind: Kind
    requests: tuple[EditRequest, ...]
    hard: tuple[bool, ...]
    means: dict[str, float | None]
    figures: tuple[Mapping[str, float | None], ...] = field(repr=False)

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


def conflict_set(
    editor: AlphaEditor,
    candidates: Sequence[EditRequest],
    kind: Kind,
    size: int,
    *,
    hard_share: float = 0.2,
    residual_at: int | None = None,
    exclude: Iterable[EditRequest] = (),
    seed: int = 0,
    progress: bool = False,
) -> ConflictSet:
    """Build a set from candidates, at the editor's present weights and state. Nothing is changed.

    Args:
        editor: Its statistics, state and settings say what conflicts.
        candidates: To choose from; more than ``size``, or nothing is chosen. Those that ask for what an edit in force
            has done already are no candidates.
        kind: What the hard ones are chosen by.
        size: Number of requests in the set.
        hard_share: The share of hard ones, those of the highest figures; the others are drawn from the rest.
        residual_at: For ``inconsistent``: the place among the edited layers, counted from 1, at which residuals are
            measured; by default the third, as in the paper, or the last where there are fewer.
        exclude: Requests of other sets, whose prompts are not to come again.
        seed: Of the draw and of the order.
        progress: Show progress bars.

    Raises:
        SettingError: An unknown kind, a share outside [0, 1], no such layer, or ``prior`` without edits in force at the
            layers of the editor's settings.
        RequestError: Fewer candidates than ``size``, or candidates without subjects.
    """
    if kind not in get_args(Kind):
        raise SettingError(f"kind is {kind!r}: it must be one of {', '.join(get_args(Kind))}")
    if not 0 <= hard_share <= 1:
        raise SettingError(f"hard_share is {hard_share}: it must lie between 0 and 1")
    n_layers = len(editor.settings.layers)
    if residual_at is not None and not 1 <= residual_at <= n_layers:
        raise SettingError(f"residual_at is {residual_at}: it must be 1 to {n_layers}, the number of edited layers")
    candidates = _fresh(candidates, exclude, editor)
    if not 1 <= size <= len(candidates):
        raise RequestError(f"a set of {size} from {len(candidates)} candidates: ask for fewer, or give more")
    if kind == "prior" and not editor.state.batches:
        raise SettingError("there are no edits in force for new ones to conflict with: edit something first")
    place = min(RESIDUAL_AT, n_layers) if residual_at is None else residual_at
    figures = _figures(editor, candidates, kind, place, progress)
    order = sorted(range(len(candidates)), key=lambda index: -figures[index])
    n_hard = round(hard_share * size)
    rng = random.Random(f"conflict set {seed}")
    chosen = [(index, True) for index in order[:n_hard]]
    chosen += [(index, False) for index in rng.sample(order[n_hard:], size - n_hard)]
    rng.shuffle(chosen)
    requests = tuple(candidates[index] for index, _ in chosen)
    rows = editor.diagnose(requests, values=True, progress=progress).rows()
    of_each = tuple({name: row[name] for name in FIGURES} for row in rows)
    means = {name: _mean([row[name] for row in of_each]) for name in FIGURES}
    return ConflictSet(kind, requests, tuple(hard for _, hard in chosen), means, of_each)


def _figures(
    editor: AlphaEditor, candidates: Sequence[EditRequest], kind: Kind, place: int, progress: bool
) -> list[float]:
    """What the hard ones are chosen by, of each candidate."""
    if kind == "inconsistent":
        return editor.residuals(candidates, place, progress=progress)
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
    done = {_asked(request) for batch in editor.state.batches for request in batch.requests}
    return tuple(
        request
        for request in candidates
        if normalise_whitespace(request.prompt) not in used and _asked(request) not in done
    )


def _asked(request: EditRequest) -> tuple[str, str]:
    return normalise_whitespace(request.prompt), normalise_whitespace(request.target_new)


def rewordings(
    edited: Sequence[EditRequest], others: Sequence[EditRequest], count: int | None = None, *, seed: int = 0
) -> list[EditRequest]:
    """Earlier edits asked in other words and with other answers, as in AlphaSet2 (:func:`reworded`).

    The new answer is drawn from those of requests of the same relation: of the same prompt, the subject aside.

    Args:
        edited: The earlier edits. Those of which no validation prompt names the subject, or of whose relation there is
            no other answer, are left out.
        others: Requests whose answers, new and old, may be drawn too.
        count: At most so many, drawn at random; by default all.
        seed: Of the draws.
    """
    answers: dict[str, dict[str, None]] = {}
    for request in (*edited, *others):
        known = answers.setdefault(_relation(request), {})
        known.update(dict.fromkeys(filter(None, (request.target_new, request.target_old))))
    rng = random.Random(f"rewordings {seed}")
    found: list[EditRequest] = []
    for request in rng.sample(list(edited), len(edited)):
        taken = {normalise_whitespace(answer) for answer in (request.target_new, request.target_old) if answer}
        free = [answer for answer in answers[_relation(request)] if normalise_whitespace(answer) not in taken]
        names_subject = any(request.subject and request.subject in prompt for prompt in request.validation_prompts)
        if free and names_subject and (count is None or len(found) < count):
            found.append(reworded(request, rng.choice(free)))
    return found


def _relation(request: EditRequest) -> str:
    return request.prompt.replace(request.subject, "{}") if request.subject else request.prompt


def validation_probes(
    requests: Sequence[EditRequest], *, share: float = 0.1, below: float = 0.9, seed: int = 0
) -> list[Probe]:
    """Rewordings of a share of a set's requests with their new answers, to choose smoothed targets on (paper, B.1).

    Give them to an edit as ``keep``, together with facts that should stay: the paper adds paraphrases of 200 of those.
    A rewording is one of the request's validation prompts, never a paraphrase, which is for testing.

    Args:
        requests: The set.
        share: How many of them, at random among those that have a fit prompt.
        below: The similarity with every edit prompt of the set must be less. The paper does not say which similarity;
            here it is the share of matching characters (``difflib``).
        seed: Of the draw.

    Raises:
        SettingError: ``share`` or ``below`` outside [0, 1].
        RequestError: Too few requests have a fit validation prompt.
    """
    for name, value in (("share", share), ("below", below)):
        if not 0 <= value <= 1:
            raise SettingError(f"{name} is {value}: it must lie between 0 and 1")
    prompts = [request.prompt for request in requests]
    wanted = round(share * len(requests))
    found: list[Probe] = []
    for request in random.Random(f"validation {seed}").sample(list(requests), len(requests)):
        if len(found) == wanted:
            break
        fit = (p for p in request.validation_prompts if not any(_alike(p, prompt, below) for prompt in prompts))
        prompt = next(fit, None)
        if prompt is not None:
            found.append(Probe(prompt=prompt, answer=request.target_new))
    if len(found) < wanted:
        raise RequestError(
            f"{len(found)} of {len(requests)} requests have a validation prompt with a similarity below {below} to "
            f"every edit prompt, and {wanted} are wanted: write validation_prompts, or lower the share"
        )
    return found


def _alike(one: str, other: str, least: float) -> bool:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    # the quick one is an upper bound
    return matcher.quick_ratio() >= least and matcher.ratio() >= least


def reworded(request: EditRequest, target_new: str) -> EditRequest:
    """An earlier edit asked in other words and with another answer, as in AlphaSet2.

    The first validation prompt that names the subject becomes the edit prompt; the other prompts stay what they are.
    ``portability`` is left out: it followed from the earlier answer.

    Raises:
        RequestError: The request has no such prompt, or the answer is the earlier one.
    """
    prompts = [prompt for prompt in request.validation_prompts if request.subject and request.subject in prompt]
    if not prompts:
        raise RequestError(f"{request.name()}: no validation prompt names the subject, so it cannot be reworded")
    if normalise_whitespace(target_new) == normalise_whitespace(request.target_new):
        raise RequestError(f"{request.name()}: {target_new!r} is its answer already: give another one")
    return EditRequest(
        prompt=prompts[0],
        target_new=target_new,
        subject=request.subject,
        target_old=request.target_new,
        paraphrases=request.paraphrases,
        neighborhood=request.neighborhood,
        validation_prompts=tuple(prompt for prompt in request.validation_prompts if prompt != prompts[0]),
        case_id=None if request.case_id is None else f"{request.case_id}-reworded",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
