"""Forgetting over the share of the data that later updates use (papers/corsa.md, 5.1 and Figure 3).

The paper varies "the percentage of the total number of samples used for updates" that are "applied to a pretrained
adapter", and looks at what the adapter knew before. So here: the first update is made whole, every later one with the
first share of its requests, and what is measured is the first update. In the paper's setting, continual revision
(:func:`corsa_plugins.bench.protocols.temporal_stream`), that is the facts of round 1 that no later round revises.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.evaluation import Interval, bootstrap_mean, pair_metrics
from corsa_plugins.bench.protocols.plan import UNTOUCHED, UpdatePlan, folder_name
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.bench.protocols.run import run_protocol
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_directory, atomic_write_text
from corsa_plugins.methods.spec import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "FORGETTING",
    "ForgettingPoint",
    "forgetting_points",
    "parse_shares",
    "run_shares",
    "with_share",
    "write_forgetting",
]

FORGETTING = "forgetting.json"
"""Name of the file, in the folder of a method."""


@dataclass(frozen=True)
class ForgettingPoint:
    """Forgetting after an update with part of the data.

    Attributes:
        share: Of the data, in [0, 1].
        forgetting: Generality of the earlier update lost, in [-1, 1].
        low, high: Its interval, where there is one.
        method: Which method; each is a line.
    """

    share: float
    forgetting: float
    low: float | None = None
    high: float | None = None
    method: str = ""


def with_share(plan: UpdatePlan, share: float) -> UpdatePlan:
    """A plan whose later updates have the first ``share`` of their requests, rounded, and at least one.

    Smaller shares are parts of larger ones. Requests that follow each other through the rounds in one order, as in a
    history of facts (:func:`corsa_plugins.data.contradictions.split_rounds`), are left out together.

    Args:
        plan: At least two updates. The first is left whole.
        share: Over 0, at most 1, which is the plan itself.

    Raises:
        SettingError: Another share, or a plan of a single update.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise SettingError(f"share {share!r}: it must be a number over 0, at most 1")
    if len(plan.sets) < 2:
        raise SettingError(f"{plan.name}: a share of the later updates needs at least two updates")
    if share == 1:
        return plan
    first, *later = plan.sets
    counts = [max(1, round(share * len(update.requests))) for update in later]
    kept = [replace(update, requests=update.requests[:count]) for update, count in zip(later, counts, strict=True)]
    return replace(plan, name=f"{plan.name}, {share:g} of later updates", sets=(first, *kept))


def parse_shares(text: str, plan: UpdatePlan) -> list[float]:
    """Shares from ``"0.25,0.5,1"``, all of them such that the plan can be run with them.

    Raises:
        SettingError: It is something else, or as for :func:`with_share`.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(f"--shares {text}: give numbers over 0, at most 1, with commas between them") from None
    for share in shares:
        with_share(plan, share)
    return shares


def run_shares(
    method: Method,
    plan: UpdatePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str],
    shares: Sequence[float],
    **settings: Any,
) -> dict[float, ProtocolResult]:
    """Run a plan whole, and with shares of its later updates.

    Each is a run of its own that can be stopped and taken up again. The first update is the same in all of them: it is
    made once, by the whole run, and put back in the others.

    Args:
        method, plan, model, tokenizer: As for :func:`corsa_plugins.bench.protocols.run_protocol`.
        output: Folder of the whole run; the others are in ``shares/SHARE`` below it. What a whole run left there is
            gone on with.
        shares: As for :func:`with_share`; 1 is always among them.
        settings: As for :func:`corsa_plugins.bench.protocols.run_protocol`. ``measures`` are for the whole run; answers
            have one length in all runs.

    Returns:
        By share, in rising order.

    Raises:
        SettingError: A share that cannot be, or a plan of a single update. Nothing has been run.
        ProtocolError: A folder holds another run.
    """
    plans = {float(share): with_share(plan, share) for share in sorted({*shares, 1.0})}
    output = Path(output)
    whole = run_protocol(method, plan, model, tokenizer, output, **settings)
    answered = whole.at(1, plan.sets[0].name).settings or {}
    settings = {**settings, "measures": None, "max_new_tokens": answered["max_new_tokens"]}
    results = {}
    for share, part in plans.items():
        if share == 1:
            results[share] = whole
            continue
        folder = output / "shares" / f"{share:g}"
        _share_first_update(plan, output, folder)
        results[share] = run_protocol(method, part, model, tokenizer, folder, **settings)
    return results


def forgetting_points(results: Mapping[float, ProtocolResult], *, untouched: bool = False) -> list[ForgettingPoint]:
    """What the later updates took, from right after the first update to the end, by share.

    Forgetting is the generality lost (papers/corsa.md, 4.3) over the requests of the first update that hold to the end
    of the whole plan, whatever the share: every point is of the same facts.

    Args:
        results: Of :func:`run_shares`.
        untouched: Of the untouched facts instead: the share of them that was right after the first update, minus that
            at the end.

    Returns:
        One point for each share, with its 95 % interval; none where there is nothing to measure.
    """
    plan = results[max(results)].plan
    points = []
    for share, result in results.items():
        lost = _untouched_lost(result) if untouched else _first_update_lost(result, plan)
        if lost is not None:
            name = f"{result.method}, untouched facts" if untouched else result.method
            points.append(ForgettingPoint(share, lost.mean, lost.low, lost.high, name))
    return points


def write_forgetting(points: Sequence[ForgettingPoint], path: str | os.PathLike[str]) -> None:
    """Write points as a JSON list of their fields, whole or not at all."""
    atomic_write_text(path, json.dumps([asdict(point) for point in points], indent=2) + "\n")


def _first_update_lost(result: ProtocolResult, plan: UpdatePlan) -> Interval | None:
    name, kept = plan.sets[0].name, plan.standing(1)
    evaluations = [result.at(moment, name) for moment in (1, len(plan.sets))]
    then, now = (replace(e, records=tuple(compress(e.records, kept))) for e in evaluations)
    return pair_metrics(then, now, later=True).get("forgetting")


def _untouched_lost(result: ProtocolResult) -> Interval | None:
    if not result.plan.untouched:
        return None
    then, now = (result.at(moment, UNTOUCHED).values("untouched") for moment in (1, len(result.plan.sets)))
    lost = [before - after for before, after in zip(then, now, strict=True) if before is not None and after is not None]
    return bootstrap_mean(lost) if lost else None


def _share_first_update(plan: UpdatePlan, whole: Path, folder: Path) -> None:
    """The first update, and what was asked of it and of the untouched facts until right after it."""
    first = folder_name(plan.sets[0].name)
    folders = [Path("updates") / f"001-{first}"]
    folders += [Path("evaluations") / f"after-{moment:03d}" / name for moment in (0, 1) for name in (first, UNTOUCHED)]
    for name in folders:
        if (whole / name).is_dir() and not (folder / name).exists():
            with atomic_directory(folder / name) as copy:
                shutil.copytree(whole / name, copy, dirs_exist_ok=True)
