"""Requests that contradict each other: found, put one after the other, or the first kept alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from corsa_plugins.data.requests import EditRequest, normalise_whitespace, quoted

__all__ = ["RequestConflict", "RequestIssues", "check_requests", "first_of_contradictions", "split_rounds"]


@dataclass(frozen=True)
class RequestConflict:
    """Requests that ask for the same prompt (whitespace aside).

    Attributes:
        indices: Their positions in the list that was checked, ascending; at least two.
        prompt: The prompt, whitespace normalised.
        targets: The distinct new targets, in order of appearance; one for duplicates, more for a contradiction.
    """

    indices: tuple[int, ...]
    prompt: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class RequestIssues:
    """What :func:`check_requests` found.

    Attributes:
        duplicates: Same prompt and same target, more than once.
        contradictions: Same prompt, different targets: no model can satisfy both.
    """

    duplicates: tuple[RequestConflict, ...] = ()
    contradictions: tuple[RequestConflict, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything was found."""
        return bool(self.duplicates or self.contradictions)


def check_requests(requests: Sequence[EditRequest]) -> RequestIssues:
    """Find duplicate and contradicting requests.

    Prompts and targets are compared with whitespace normalised; case counts.

    Args:
        requests: Any number of requests, in any order.

    Returns:
        The duplicates and contradictions, in order of first appearance.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        groups[normalise_whitespace(request.prompt)].append(index)
    duplicates, contradictions = [], []
    for prompt, indices in groups.items():
        by_target: defaultdict[str, list[int]] = defaultdict(list)
        for index in indices:
            by_target[normalise_whitespace(requests[index].target_new)].append(index)
        duplicates += [RequestConflict(tuple(same), prompt, (t,)) for t, same in by_target.items() if len(same) > 1]
        if len(by_target) > 1:
            contradictions.append(RequestConflict(tuple(indices), prompt, tuple(by_target)))
    return RequestIssues(tuple(duplicates), tuple(contradictions))


def split_rounds(requests: Sequence[EditRequest]) -> list[list[EditRequest]]:
    """Split requests into rounds of update, so that none contradicts another of its round.

    A prompt's first target is in the first round, the next target it is given in the second, and so on: a history of
    one fact (AToKe) becomes successive updates, in its order. Prompts are compared with whitespace normalised.

    Returns:
        The rounds, each in the order of ``requests``; all requests, once. No round is empty.
    """
    rounds: list[list[EditRequest]] = []
    latest: dict[str, tuple[int, str]] = {}
    for request in requests:
        prompt, target = normalise_whitespace(request.prompt), normalise_whitespace(request.target_new)
        number, before = latest.get(prompt, (-1, None))
        if target != before:
            number += 1
        latest[prompt] = (number, target)
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(request)
    return rounds


def first_of_contradictions(requests: Sequence[EditRequest]) -> tuple[list[EditRequest], list[str]]:
    """Leave out every request whose prompt was given another target before.

    Returns:
        The others, in order, and a line for each request left out.
    """
    first: dict[str, tuple[str, EditRequest]] = {}
    kept, left_out = [], []
    for at, request in enumerate(requests):
        prompt, target = normalise_whitespace(request.prompt), normalise_whitespace(request.target_new)
        earlier = first.setdefault(prompt, (target, request))
        if earlier[0] == target:
            kept.append(request)
        else:
            left_out.append(
                f"{request.name(at)}: {quoted(request.target_new)} contradicts {quoted(earlier[1].target_new)}, which "
                f"case {earlier[1].case_id!r} gives the same prompt"
            )
    return kept, left_out
