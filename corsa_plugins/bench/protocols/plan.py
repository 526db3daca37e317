"""Which updates follow each other, and what is asked when.

A plan is plain data; four functions make the usual ones. What is measured right after an update and what is measured
after all updates are different evaluations from the start, and nothing later mixes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from corsa_plugins.data.requests import EditRequest, Probe, normalise_whitespace
from corsa_plugins.errors import SettingError

__all__ = [
    "UNTOUCHED",
    "ProtocolKind",
    "UpdatePlan",
    "UpdateSet",
    "cross_set_injection",
    "folder_name",
    "make_plan",
    "method_folder",
    "sequential_batches",
    "single_update",
    "temporal_stream",
]

ProtocolKind = Literal["single", "injection", "stream", "batches", "wild"]
"""The protocols by name."""

UNTOUCHED = "untouched"
"""The name under which the untouched facts are evaluated; no set of requests may have it."""


def folder_name(name: str) -> str:
    """A name as a folder is named: letters and digits, everything else as hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def method_folder(name: str) -> str:
    """The folder of a method's runs: its name, with ``plus`` for ``+``, which tells methods apart."""
    return folder_name(name.replace("+", " plus"))


@dataclass(frozen=True)
class UpdateSet:
    """The requests of one update.

    Attributes:
        name: For tables and folders.
        requests: At least one.
    """

    name: str
    requests: tuple[EditRequest, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "requests", tuple(self.requests))
        if not self.requests:
            raise SettingError(f"the update {self.name!r} has no requests: give at least one, or leave it out")


@dataclass(frozen=True)
class UpdatePlan:
    """Updates in order, and what is asked at which moment.

    Moment 0 is before the first update, moment t right after update t, counted from 1.

    Attributes:
        name: Of the protocol.
        sets: Update t is ``sets[t - 1]``.
        evaluated: For each moment from 0 on, the numbers of the updates (from 1) whose requests are evaluated then.
            Always among them: at moment t update t, and at the last moment every update.
        untouched: Facts that no update is about, with their right answers; evaluated at every moment.

    Raises:
        SettingError: No updates, two of one name, or moments that do not fit them.
    """

    name: str
    sets: tuple[UpdateSet, ...]
    evaluated: tuple[tuple[int, ...], ...]
    untouched: tuple[Probe | EditRequest, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "untouched", tuple(self.untouched))
        if not self.sets:
            raise SettingError("no updates: give at least one set of requests")
        folders = [folder_name(update.name) for update in self.sets]
        for update, folder in zip(self.sets, folders, strict=True):
            if not folder or folder == UNTOUCHED or folders.count(folder) > 1:
                raise SettingError(
                    f"the name {update.name!r} of an update: it must differ from the others and from {UNTOUCHED!r} in "
                    "its letters and digits, as it names a folder"
                )
        count = len(self.sets)
        everything = set(range(1, count + 1))
        if len(self.evaluated) != count + 1:
            raise SettingError(f"evaluated has {len(self.evaluated)} moments: {count} updates have {count + 1}")
        for moment, numbers in enumerate(self.evaluated):
            needed = everything if moment == count else {moment} - {0}
            if not set(numbers) <= everything or not needed <= set(numbers) or len(set(numbers)) != len(numbers):
                raise SettingError(
                    f"evaluated[{moment}] is {numbers!r}: name updates from 1 to {count}, each once, among them "
                    f"{', '.join(map(str, sorted(needed))) or 'any'}"
                )

    def evaluations(self) -> list[tuple[int, str]]:
        """What is evaluated: moment and name of the set, in order; at every moment the untouched facts last."""
        untouched = [UNTOUCHED] if self.untouched else []
        return [
            (moment, name)
            for moment, numbers in enumerate(self.evaluated)
            for name in (*(self.sets[number - 1].name for number in numbers), *untouched)
        ]

    def standing(self, update: int, moment: int | None = None) -> tuple[bool, ...]:
        """Which requests of an update still hold at a moment, by default the last.

        A request that a later update gives another target for the same prompt (whitespace aside) no longer does: that
        the model stops giving its answer is what was asked for, not forgetting.

        Args:
            update: Its number, from 1.
            moment: From ``update`` on.
        """
        last = len(self.sets) if moment is None else moment
        later = [request for later_update in self.sets[update:last] for request in later_update.requests]
        latest = {_prompt(request): _target(request) for request in later}
        return tuple(
            latest.get(_prompt(request), _target(request)) == _target(request)
            for request in self.sets[update - 1].requests
        )


def _prompt(request: EditRequest) -> str:
    return normalise_whitespace(request.prompt)


def _target(request: EditRequest) -> str:
    return normalise_whitespace(request.target_new)


def single_update(
    requests: Sequence[EditRequest], *, untouched: Sequence[Probe | EditRequest] = (), name: str = "update"
) -> UpdatePlan:
    """One update with all requests (CoRSA paper, 4.2; Tables 1 and 4)."""
    return UpdatePlan("single update", (UpdateSet(name, tuple(requests)),), ((1,), (1,)), tuple(untouched))


def cross_set_injection(
    first: Sequence[EditRequest],
    second: Sequence[EditRequest],
    *,
    names: tuple[str, str] = ("A", "B"),
    untouched: Sequence[Probe | EditRequest] = (),
) -> UpdatePlan:
    """Update with one set, then with another one; both are evaluated before, between and after.

    What the second takes from the first is the forgetting of Table 2 of the CoRSA paper (4.3), and the old answers of
    the first that it brings back are the activation of Table 5 (4.4).
    """
    sets = (UpdateSet(names[0], tuple(first)), UpdateSet(names[1], tuple(second)))
    return UpdatePlan("cross-set injection", sets, ((1, 2), (1, 2), (1, 2)), tuple(untouched))


def temporal_stream(
    rounds: Sequence[Sequence[EditRequest]],
    *,
    untouched: Sequence[Probe | EditRequest] = (),
    every_round: bool = False,
) -> UpdatePlan:
    """Rounds of updates that follow each other in time (CoRSA paper, 4.3; Table 3).

    Each round is evaluated right after it and at the end, the untouched facts after every round. A history of facts
    becomes rounds by :func:`corsa_plugins.data.contradictions.split_rounds`. Facts that are learned in the first round
    and not revised since are what forgetting is measured on; a request that a later round replaces is not
    (:meth:`UpdatePlan.standing`).

    Args:
        rounds: The requests of each.
        untouched: Facts that no round is about.
        every_round: Evaluate all earlier rounds after every round, for curves over time, not at the end alone.
    """
    sets = tuple(UpdateSet(f"round {number}", tuple(requests)) for number, requests in enumerate(rounds, start=1))
    return UpdatePlan("temporal stream", sets, _moments(len(sets), every_round), tuple(untouched))


def sequential_batches(
    requests: Sequence[EditRequest],
    n: int,
    *,
    untouched: Sequence[Probe | EditRequest] = (),
    every_batch: bool = False,
) -> UpdatePlan:
    """Requests in ``n`` batches, in order and of equal size up to one, edited one after the other.

    Each batch is evaluated right after it, and all of them after all.

    Raises:
        SettingError: Fewer than one batch, or more than requests.
    """
    if not 1 <= n <= len(requests):
        raise SettingError(f"{n} batches of {len(requests)} requests: give a number from 1 to {len(requests)}")
    bounds = [len(requests) * batch // n for batch in range(n + 1)]
    sets = tuple(
        UpdateSet(f"batch {batch + 1}", tuple(requests[bounds[batch] : bounds[batch + 1]])) for batch in range(n)
    )
    return UpdatePlan("sequential batches", sets, _moments(n, every_batch), tuple(untouched))


def make_plan(
    kind: ProtocolKind,
    sets: Sequence[Sequence[EditRequest]],
    *,
    batches: int | None = None,
    untouched: Sequence[Probe | EditRequest] = (),
) -> UpdatePlan:
    """The plan of a protocol by its name.

    Args:
        kind: Which.
        sets: The requests, one sequence for each file: two for ``injection``, any number for ``stream`` and ``wild``,
            else one.
        batches: How many to split them into, for ``batches``, or for ``wild`` of one file.
        untouched: Facts that no update is about.

    Raises:
        SettingError: The protocol takes another number of files, or batches.
    """
    if kind == "injection":
        if len(sets) != 2:
            raise SettingError(f"injection takes two files of requests, one for each update; {len(sets)} given")
        return cross_set_injection(sets[0], sets[1], untouched=untouched)
    if kind == "stream" or (kind == "wild" and len(sets) > 1 and batches is None):
        return temporal_stream(sets, untouched=untouched)
    if len(sets) != 1:
        raise SettingError(f"{kind} takes one file of requests; {len(sets)} given")
    if kind == "single" or (kind == "wild" and batches is None):
        return single_update(sets[0], untouched=untouched)
    if batches is None:
        raise SettingError("batches needs the number of batches to split the requests into")
    return sequential_batches(sets[0], batches, untouched=untouched)


def _moments(count: int, every: bool) -> tuple[tuple[int, ...], ...]:
    everything = tuple(range(1, count + 1))
    between = tuple(everything[:moment] if every else (moment,) for moment in range(1, count))
    return (everything, *between, everything)
