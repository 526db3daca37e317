"""What commands have written, recognised by what it is and turned into the parts of a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corsa_plugins.bench.ability import Ability, load_ability, read_ability
from corsa_plugins.bench.curvature import load_curvature
from corsa_plugins.bench.evaluation import Evaluation
from corsa_plugins.bench.evaluation.same_questions import ReportError, check_same_questions
from corsa_plugins.bench.evaluation.storage import RECORDS, SUMMARY, load_evaluation
from corsa_plugins.bench.merge_sweep import default_metric, read_sweep
from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.errors import CorsaError
from corsa_plugins.report.page import Conflict, CurvatureRow, HarnessScore, HistoryPoint, SweepRow, history_points

__all__ = ["KINDS", "SourceError", "Sources", "harness_scores", "read_sources"]


class SourceError(CorsaError, ValueError):
    """A file or folder that no part of a report can be made of."""


@dataclass
class Sources:
    """Parts of a report, as :func:`~corsa_plugins.report.page.write_report` takes them.

    Attributes:
        given: What each file or folder was taken for.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    history: list[HistoryPoint] = field(default_factory=list)
    forgetting: list[ForgettingPoint] = field(default_factory=list)
    sweep: list[SweepRow] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    curvature: list[CurvatureRow] = field(default_factory=list)
    harness: list[HarnessScore] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)

    def groups(self) -> list[list[Evaluation]]:
        """The evaluations that were asked the same, together, in their order."""
        groups: list[list[Evaluation]] = []
        for evaluation in self.evaluations:
            for group in groups:
                try:
                    check_same_questions(group[0], evaluation)
                except ReportError:
                    continue
                group.append(evaluation)
                break
            else:
                groups.append([evaluation])
        return groups

    def parts(self) -> dict[str, Any]:
        """All parts but the evaluations, by the names that ``write_report`` has for them."""
        return {name: value for name, value in vars(self).items() if name not in ("evaluations", "given")}


def read_sources(paths: Sequence[str]) -> Sources:
    """Recognise files and folders, and read them.

    Args:
        paths: Each a path, or ``LABEL=PATH`` to say what it is called in the report; by default the name of the folder.

    Raises:
        SourceError: There is no such path, or it is none of :data:`KINDS`, or it is damaged; the message says which.
        CorsaError: From the reader of a kind, likewise.
    """
    found = Sources()
    for given in paths:
        label, path = _split(given)
        if path.is_dir():
            _read_folder(path, label, found)
        elif path.exists():
            _read_file(path, label, found)
        else:
            raise SourceError(f"{path}: no such file or folder" + (f" (of {given!r})" if label else ""))
    return found


def harness_scores(saved: Mapping[str, Any], label: str, taken: Sequence[HarnessScore] = ()) -> list[HarnessScore]:
    """Scores from the entry ``general_ability`` of a summary, those of its baseline first.

    Args:
        saved: What :func:`corsa_plugins.bench.ability.ability_summary` made.
        label: Of the model.
        taken: Scores that will stand beside these: other scores get another label, the same are not repeated.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: The entry is something else.
    """
    found: list[HarnessScore] = []
    against = None
    if "baseline_scores" in saved:
        base = read_ability(saved["baseline_scores"])
        against = _column(str(saved["baseline"]), base, taken)
        found += HarnessScore.of(base, against)
    scores = read_ability(saved["scores"])
    column = _column(label, scores, [*taken, *found], other_than=against)
    return found + HarnessScore.of(scores, column, against)


def _column(label: str, scores: Ability, taken: Sequence[HarnessScore], other_than: str | None = None) -> str:
    """A label under which no other scores stand."""
    wanted = {(one.task, one.metric): one.value for one in HarnessScore.of(scores, label)}
    name, number = label, 1
    while True:
        there = {(one.task, one.metric): one.value for one in taken if one.label == name}
        if name != other_than and (not there or there == wanted):
            return name
        number += 1
        name = f"{label} ({number})"


def _split(given: str) -> tuple[str | None, Path]:
    """Label and path; a path with an equals sign in it is a path if it is there."""
    label, equals, path = given.partition("=")
    if not equals or Path(given).expanduser().exists():
        return None, Path(given).expanduser()
    if not path:
        raise SourceError(f"{given!r} has no path behind its equals sign")
    return label or None, Path(path).expanduser()


def _folder_name(folder: Path) -> str:
    """A name that says something: a trainer's checkpoint folders are all called the same."""
    folder = folder.resolve()
    return folder.parent.name if folder.name.startswith("checkpoint-") else folder.name


# --- Folders ---


_FILES = (
    "trainer_state.json",
    "history.json",
    "forgetting.json",
    "sweep.jsonl",
    "report.json",
    "diagnosis.jsonl",
    "curvature.json",
)
"""What a folder is searched for besides an evaluation; one of ``corsa protocol`` also in that of each update."""


def _read_folder(folder: Path, label: str | None, found: Sources) -> None:
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    files += sorted(path for name in ("history", "report") for path in folder.glob(f"updates/*/{name}.json"))
    if not (folder / "trainer_state.json").is_file():
        numbered = [
            (path.parent.name.partition("-")[2], path) for path in folder.glob("checkpoint-*/trainer_state.json")
        ]
        files += [path for _, path in sorted((int(n), path) for n, path in numbered if n.isdigit())[-1:]]
    whole = all((folder / name).is_file() for name in (SUMMARY, RECORDS))
    if whole:
        _add_evaluation(folder, label, found)
    else:
        files += [folder / name for name in ("harness.json", "ability.json") if (folder / name).is_file()]
    if not files and not whole:
        page = folder / "report.html"
        there = f" It has a page of its own, {page}; folders in it may be shown." if page.is_file() else ""
        raise SourceError(f"{folder} holds nothing that a report can show.{there} {_understood()}")
    own = _folder_name(folder)
    updates = {file.parent.name for file in files if file.parent.parent == folder / "updates"}
    for file in files:
        if file.parent.name in updates and len(updates) > 1:
            _read_file(file, f"{label or own}, {file.parent.name}", found)
        else:
            _read_file(file, label, found, own)


def _add_evaluation(folder: Path, label: str | None, found: Sources) -> None:
    evaluation = load_evaluation(folder)
    name, number = label or evaluation.label, 1
    while name in {one.label for one in found.evaluations}:
        number += 1
        name = f"{label or evaluation.label} ({number})"
    evaluation = replace(evaluation, label=name)
    said = [f"evaluation of {name}"]
    if evaluation.records or evaluation.untouched:
        found.evaluations.append(evaluation)
        said += [f"{len(evaluation.records)} requests", f"{len(evaluation.untouched)} untouched facts"]
    said += [f"{setting} {value}" for setting, value in (evaluation.settings or {}).items()]
    try:
        ability = json.loads((folder / SUMMARY).read_text(encoding="utf-8")).get("general_ability")
        if ability:
            found.harness += harness_scores(ability, name, found.harness)
            said.append("general ability")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder / SUMMARY} is damaged: general_ability cannot be read ({error!r})") from error
    found.given[str(folder)] = ", ".join(said)


# --- Files ---


@dataclass(frozen=True)
class _Kind:
    """One kind of file.

    Attributes:
        name: In words.
        fits: Whether data of a file are of this kind.
        add: Adds them to what was found, given the path, the data, the label, and whether the label was asked for; says
            in words what was added.
    """

    name: str
    fits: Callable[[Any], bool]
    add: Callable[[Sources, Path, Any, str, bool], str]


def _read_file(path: Path, label: str | None, found: Sources, default: str | None = None) -> None:
    data = _parse(path)
    kind = next((kind for kind in _FILE_KINDS if kind.fits(data)), None)
    if kind is None and path.name in (SUMMARY, RECORDS) and (path.parent / SUMMARY).is_file():
        return _read_folder(path.parent, label, found)
    if kind is None:
        raise SourceError(f"{path} is nothing that a report can show. {_understood()}")
    name = label or default or _folder_name(path.absolute().parent)
    try:
        found.given[str(path)] = f"{kind.name}: {kind.add(found, path, data, name, label is not None)}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, CorsaError):
            raise
        raise SourceError(f"{path} looks like {kind.name}, and is damaged: {error!r}") from error
    return None


def _parse(path: Path) -> Any:
    """The data of a JSON file, or the list of those of a JSON Lines file, without a last line that was cut short."""
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError:
        raise SourceError(f"{path} is no text, and so nothing that a report can show. {_understood()}") from None
    try:
        return json.loads(text)
    except RecursionError:
        raise SourceError(f"{path} is nested too deep for anything that a report can show. {_understood()}") from None
    except ValueError as error:
        lines = [line for line in text[: text.rfind("\n") + 1].split("\n") if line.strip()]
        try:
            return [json.loads(line) for line in lines] if lines else _raise(error)
        except ValueError:
            raise SourceError(f"{path} is neither JSON nor JSON Lines ({error}), or damaged. {_understood()}") from None


def _raise(error: Exception) -> Any:
    raise error


def _has(*keys: str) -> Callable[[Any], bool]:
    return lambda data: isinstance(data, Mapping) and all(key in data for key in keys)


def _all_have(*keys: str) -> Callable[[Any], bool]:
    fits = _has(*keys)
    return lambda data: isinstance(data, list) and bool(data) and all(fits(row) for row in data)


def _first_has(*keys: str) -> Callable[[Any], bool]:
    """JSON Lines by the first line, which may be the only one."""
    fits = _has(*keys)
    return lambda data: fits(data[0] if isinstance(data, list) and data else data)


def _is_log(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, Mapping) for row in data) and any("step" in r for r in data)


def _is_ability(data: Any) -> bool:
    changes = [one for metrics in _values(data) for one in _values(metrics)]
    return bool(changes) and all(_has("before", "after", "difference")(one) for one in changes)


def _is_kept_scores(data: Any) -> bool:
    return _has("model", "asked")(data) and _all_have("task", "settings", "scores")(data["asked"])


def _values(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, Mapping) else []


def _add_sweep(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    _, points = read_sweep(path)
    if not points:
        raise SourceError(f"{path} has no points yet: finish the sweep first")
    metric, best = default_metric(points), _best(path.parent / "best.yaml")
    found.sweep += [
        SweepRow(
            point.weight,
            point.density,
            point.metrics[metric],
            point.retained,
            best=(point.weight, point.density) == best,
            run=f"{label}: {metric}",
        )
        for point in points
    ]
    return f"{len(points)} points; edits kept is {metric}"


def _best(recipe: Path) -> tuple[float, float] | None:
    """Weight and density of the recipe that ``corsa merge-sweep`` wrote beside its results."""
    import yaml

    if not recipe.is_file():
        return None
    try:
        chosen = yaml.safe_load(recipe.read_text(encoding="utf-8"))["models"][0]["parameters"]
        return float(chosen["weight"]), float(chosen["density"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError) as error:
        raise SourceError(f"{recipe} is not the recipe of a merge that corsa merge-sweep wrote: {error!r}") from error


def _add_conflicts(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    rows = data["requests"] if isinstance(data, Mapping) and "requests" in data else data
    rows = rows if isinstance(rows, list) else [rows]
    found.conflicts += [
        Conflict(
            _number(row["preserved_conflict"]),
            _number(row["prior_conflict"]),
            _number(row.get("inconsistency")),
            group=label,
        )
        for row in rows
    ]
    return f"{len(rows)} requests"


def _add_history(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    log = data["log_history"] if isinstance(data, Mapping) else data
    points = history_points(log, label)
    for point in points:
        for value in (point.step, point.log_prob_new, point.log_prob_old, point.margin):
            if not isinstance(value, float | int | None):
                raise TypeError(f"{value!r} is no number")
        if point.step is None or point.log_prob_new is None:
            raise TypeError("null is no number")
    if not points:
        raise SourceError(
            f"{path} has no log-probabilities of new answers: train with corsa train, best with its --history_looks, "
            "or by corsa protocol"
        )
    found.history += points
    return f"{len(points)} points of {label}"


def _add_forgetting(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    methods = list(dict.fromkeys(str(row.get("method") or label) for row in data))
    for row in data:
        method = str(row.get("method") or label)
        if named:
            method = label if len(methods) == 1 else f"{label}: {method}"
        low, high = _number(row.get("low")), _number(row.get("high"))
        found.forgetting.append(ForgettingPoint(float(row["share"]), float(row["forgetting"]), low, high, method))
    return f"{len(data)} points of {', '.join(methods)}"


def _add_curvature(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    models = load_curvature(path)
    for name, functions in models.items():
        shown = name if not named else label if len(models) == 1 else f"{label}: {name}"
        found.curvature += [
            CurvatureRow(shown, of, one.largest, one.top, one.iterations, one.converged)
            for of, one in functions.items()
        ]
    return ", ".join(models)


def _add_harness(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    scores = load_ability(path)
    found.harness += harness_scores({"scores": scores}, label, found.harness)
    return ", ".join(scores)


def _add_ability(found: Sources, path: Path, data: Any, label: str, named: bool) -> str:
    """Before and after a protocol: there are standard errors of the differences alone, and so none are shown."""
    before, after = (
        {task: {metric: float(one[moment]) for metric, one in metrics.items()} for task, metrics in data.items()}
        for moment in ("before", "after")
    )
    saved = {"scores": after, "baseline": f"{label}, before", "baseline_scores": before}
    found.harness += harness_scores(saved, f"{label}, after", found.harness)
    return ", ".join(data)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


_FILE_KINDS = (
    _Kind("results of corsa merge-sweep", _first_has("sweep"), _add_sweep),
    _Kind("a report of corsa edit", _has("batch", "requests", "layers"), _add_conflicts),
    _Kind("a diagnosis of corsa diagnose", _first_has("preserved_conflict", "prior_conflict"), _add_conflicts),
    _Kind("a trainer's state", _has("log_history"), _add_history),
    _Kind("forgetting over shares of the data", _all_have("share", "forgetting"), _add_forgetting),
    _Kind("a training history", _is_log, _add_history),
    _Kind("scores of lm-evaluation-harness", _is_kept_scores, _add_harness),
    _Kind("general ability before and after a protocol", _is_ability, _add_ability),
    _Kind("curvatures", _has("curvature"), _add_curvature),
)

KINDS = (
    "a folder of corsa evaluate (summary.json, records.jsonl, general ability in it)",
    "results of corsa merge-sweep (sweep.jsonl)",
    "a report of corsa edit (report.json) or of corsa diagnose --output (diagnosis.jsonl)",
    "a training history (trainer_state.json of a trainer that logs log-probabilities of answers, or history.json)",
    "scores that corsa evaluate --harness keeps (harness.json)",
    "curvatures (corsa_plugins.bench.curvature.save_curvature)",
    "forgetting over shares of the data (forgetting.json)",
    "the folder of a method that corsa protocol wrote, for its training histories, forgetting and general ability",
)
"""What is understood, in words."""


def _understood() -> str:
    return "Understood are: " + "; ".join(KINDS)
