"""Earlier edits in other words: as candidates of a set, and to validate smoothed targets on (AlphaEdit+ paper, B.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import SequenceMatcher

from corsa_plugins.data.requests import EditRequest, Probe, RequestError, normalise_whitespace
from corsa_plugins.errors import SettingError

__all__ = ["reworded", "rewordings", "validation_probes"]


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
    chosen: list[EditRequest] = []
    for request in rng.sample(list(edited), len(edited)):
        taken = {normalise_whitespace(answer) for answer in (request.target_new, request.target_old) if answer}
        free = [answer for answer in answers[_relation(request)] if normalise_whitespace(answer) not in taken]
        names_subject = any(request.subject and request.subject in prompt for prompt in request.validation_prompts)
        if free and names_subject and (count is None or len(chosen) < count):
            chosen.append(reworded(request, rng.choice(free)))
    return chosen


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
    probes: list[Probe] = []
    for request in random.Random(f"validation {seed}").sample(list(requests), len(requests)):
        if len(probes) == wanted:
            break
        fit = (p for p in request.validation_prompts if not any(_alike(p, prompt, below) for prompt in prompts))
        prompt = next(fit, None)
        if prompt is not None:
            probes.append(Probe(prompt=prompt, answer=request.target_new))
    if len(probes) < wanted:
        raise RequestError(
            f"{len(probes)} of {len(requests)} requests have a validation prompt with a similarity below {below} to "
            f"every edit prompt, and {wanted} are wanted: write validation_prompts, or lower the share"
        )
    return probes


def _alike(text: str, other: str, least: float) -> bool:
    matcher = SequenceMatcher(None, text, other, autojunk=False)
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
