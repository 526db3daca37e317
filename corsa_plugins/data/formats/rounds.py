"""Requests that contradict each other: one after the other, or the first alone."""

from __future__ import annotations

from collections.abc import Sequence

from corsa_plugins.data.requests import EditRequest, normalise_whitespace

__all__ = ["first_of_contradictions", "split_rounds"]


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
                f"{request.name(at)}: {request.target_new!r} contradicts {earlier[1].target_new!r}, which "
                f"case {earlier[1].case_id!r} gives the same prompt"
            )
    return kept, left_out
