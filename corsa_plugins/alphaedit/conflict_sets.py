"""Sets of edit requests that are hard for a given model and edit state (AlphaEdit+ paper, 4.1 and B.1, AlphaSet1-3).

The paper's sets mix a fifth of hard requests with random ones:

* ``preserved`` (AlphaSet1): keys in high conflict with the preserved ones;
* ``prior`` (AlphaSet2): rewordings of facts that were edited before, with other answers;
* ``inconsistent`` (AlphaSet3): the largest residuals ||v* - Wk||, measured at the output of the last edited block
  before anything is edited. The paper measures them at the third of its five layers.

There the hard requests of the first two were written by a language model. Here they are chosen from the candidates by
the same figures, so that a set can be built from any requests file; rewordings of earlier edits can be made of their
validation prompts (:func:`reworded`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from corsa_plugins.errors import SettingError
from corsa_plugins.requests import EditRequest, RequestError, normalise_whitespace

if TYPE_CHECKING:
    from corsa_plugins.alphaedit.editor import AlphaEditor

__all__ = ["ConflictSet", "Kind", "conflict_set", "reworded"]

Kind = Literal["preserved", "prior", "inconsistent"]


@dataclass(frozen=True)
class ConflictSet:
    """Requests, hard and random ones mixed.

    Attributes:
        kind: What is hard about them.
        requests: In random order.
        hard: For each, whether it was chosen as hard.
        means: Over all of them, as in the paper's Table 1: ``preserved_conflict`` (Eq. 3), ``subspace_conflict``
            (Eq. 6), ``prior_conflict`` and ``inconsistency``; ``None`` where there is nothing to measure against.
    """

    kind: Kind
    requests: tuple[EditRequest, ...]
    hard: tuple[bool, ...]
    means: dict[str, float | None]


def conflict_set(
    editor: AlphaEditor,
    candidates: Sequence[EditRequest],
    kind: Kind,
    size: int,
    *,
    hard_share: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> ConflictSet:
    """Build a set from candidates, at the editor's present weights and state. Nothing is changed.

    Args:
        editor: Its statistics, state and settings say what conflicts.
        candidates: To choose from; more than ``size``, or nothing is chosen.
        kind: What the hard ones are chosen by.
        size: Number of requests in the set.
        hard_share: The share of hard ones, those of the highest figures; the others are drawn from the rest.
        seed: Of the draw and of the order.
        progress: Show progress bars.

    Raises:
        SettingError: An unknown kind, a share outside [0, 1], or ``prior`` without edits in force at the layers of the
            editor's settings.
        RequestError: Fewer candidates than ``size``, or candidates without subjects.
    """
    if kind not in get_args(Kind):
        raise SettingError(f"kind is {kind!r}: it must be one of {', '.join(get_args(Kind))}")
    if not 0 <= hard_share <= 1:
        raise SettingError(f"hard_share is {hard_share}: it must lie between 0 and 1")
    if not 1 <= size <= len(candidates):
        raise RequestError(f"a set of {size} from {len(candidates)} candidates: ask for fewer, or give more")
    if kind == "prior" and not editor.state.batches:
        raise SettingError("there are no edits in force for new ones to conflict with: edit something first")
    diagnosis = editor.diagnose(candidates, values=kind == "inconsistent", progress=progress)
    rows = diagnosis.rows()
    if kind == "prior" and all(row["prior_conflict"] is None for row in rows):
        raise SettingError(
            f"no edit in force changed layers {', '.join(map(str, editor.settings.layers))}: there is nothing for new "
            "ones to conflict with; edit something there first"
        )
    # Every key shares most of its direction with some preserved one where the model is small: Eq. 6 is the finer.
    by = {"preserved": "subspace_conflict", "prior": "prior_conflict", "inconsistent": "inconsistency"}[kind]
    order = sorted(range(len(rows)), key=lambda index: -(rows[index][by] or 0.0))
    n_hard = round(hard_share * size)
    rng = random.Random(f"conflict set {seed}")
    chosen = [(index, True) for index in order[:n_hard]]
    chosen += [(index, False) for index in rng.sample(order[n_hard:], size - n_hard)]
    rng.shuffle(chosen)
    requests = tuple(candidates[index] for index, _ in chosen)
    measured = rows
    if kind != "inconsistent":
        measured = editor.diagnose(requests, values=True, progress=progress).rows()
        places = list(range(len(requests)))
    else:
        places = [index for index, _ in chosen]
    names = ("preserved_conflict", "subspace_conflict", "prior_conflict", "inconsistency")
    means = {name: _mean([measured[place][name] for place in places]) for name in names}
    return ConflictSet(kind, requests, tuple(hard for _, hard in chosen), means)


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
