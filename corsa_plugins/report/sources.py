"""What commands have written, recognised by what it is and turned into a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corsa_plugins.bench.evaluation import Evaluation, load_evaluation
from corsa_plugins.bench.evaluation.same_questions import ReportError, check_same_questions
from corsa_plugins.bench.evaluation.storage import RECORDS, SUMMARY, is_evaluation
from corsa_plugins.errors import CorsaError, DamagedError
from corsa_plugins.manifest import read_manifest
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path
from corsa_plugins.report.kinds import File, Kind, SourceError
from corsa_plugins.report.report import Report
from corsa_plugins.report.sections import ABILITY, Section, in_order
from corsa_plugins.report.sections.ability import harness_scores
from corsa_plugins.sealed import unsealed

__all__ = ["SourceError", "Sources", "read_sources", "understood"]


@dataclass
class Sources:
    """What was read.

    Attributes:
        evaluations: In the order of their paths.
        parts: By section, its rows.
        given: What each file or folder was taken for.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    parts: dict[str, list[Any]] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)

    def part(self, section: Section) -> list[Any]:
        """The rows of a section, to which more can be added."""
        return self.parts.setdefault(section.name, [])

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

    def report(self, title: str | None, asked: Mapping[str, Any], *, later: bool = False) -> Report:
        """All of it as a report.

        Args:
            title: By default the labels of the evaluations.
            asked: What was run, shown as it is.
            later: As for :class:`~corsa_plugins.report.report.Report`.
        """
        about = ", ".join(evaluation.label for evaluation in self.evaluations)
        return Report(
            title or about or "Report",
            self.evaluations,
            asked=asked,
            answers=self.groups(),
            parts=self.parts,
            later=later,
        )


def read_sources(paths: Sequence[str]) -> Sources:
    """Recognise files and folders, and read them.

    Args:
        paths: Each a path, or ``LABEL=PATH`` to say what it is called in the report; by default the name of the folder.

    Raises:
        SourceError: There is no such path, or it is nothing that is :func:`understood`, or it is damaged; the message
            says which.
        CorsaError: From the reader of a kind, likewise.
    """
    sources = Sources()
    for given in paths:
        label, path = _split(given)
        if path.is_dir():
            _read_folder(path, label, sources)
        elif path.exists():
            _read_file(path, label, sources)
        else:
            raise SourceError(f"{path}: no such file or folder" + (f" (of {given!r})" if label else ""))
    return sources


def understood() -> str:
    """What can be read, in words."""
    said = ["a folder of corsa evaluate (summary.json, records.jsonl, general ability in it)"]
    said += [kind.said for _, kind in _kinds() if kind.said]
    said += [
        "the folder of a method that corsa protocol wrote, for its training histories, forgetting and general ability"
    ]
    return "Understood are: " + "; ".join(dict.fromkeys(said))


def _kinds() -> Iterator[tuple[Section, Kind]]:
    return ((section, kind) for section in in_order() for kind in section.kinds)


def _split(given: str) -> tuple[str | None, Path]:
    """Label and path; a path with an equals sign in it is a path if it is there."""
    label, equals, path = given.partition("=")
    if not equals or user_path(given).exists():
        return None, user_path(given)
    if not path:
        raise SourceError(f"{given!r} has no path behind its equals sign")
    return label or None, user_path(path)


def _folder_name(folder: Path) -> str:
    """A name that says something: a trainer's checkpoint folders are all called the same."""
    folder = folder.resolve()
    return folder.parent.name if folder.name.startswith("checkpoint-") else folder.name


def _read_folder(folder: Path, label: str | None, sources: Sources) -> None:
    files = list(dict.fromkeys(path for _, kind in _kinds() for path in kind.files(folder)))
    files.sort(key=lambda path: "" if path.parent == folder else str(path))  # its own, then update by update
    if is_evaluation(folder):
        _add_evaluation(folder, label, sources)
    elif not files:
        page = folder / "report.html"
        there = f" It has a page of its own, {page}; folders in it may be shown." if page.is_file() else ""
        raise SourceError(f"{folder} holds nothing that a report can show.{there} {understood()}")
    own = _folder_name(folder)
    updates = {file.parent.name for file in files if file.parent.parent == folder / "updates"}
    for file in files:
        if file.parent.name in updates and len(updates) > 1:
            _read_file(file, f"{label or own}, {file.parent.name}", sources)
        else:
            _read_file(file, label, sources, own)


def _add_evaluation(folder: Path, label: str | None, sources: Sources) -> None:
    evaluation = load_evaluation(folder)
    name, number = label or evaluation.label, 1
    while name in {other.label for other in sources.evaluations}:
        number += 1
        name = f"{label or evaluation.label} ({number})"
    evaluation = replace(evaluation, label=name)
    said = [f"evaluation of {name}"]
    if evaluation.records or evaluation.untouched:
        sources.evaluations.append(evaluation)
        said += [f"{len(evaluation.records)} requests", f"{len(evaluation.untouched)} untouched facts"]
    said += [f"{setting} {value}" for setting, value in (evaluation.settings or {}).items()]
    try:
        ability = json_value((folder / SUMMARY).read_text(encoding="utf-8")).get("general_ability")
        if ability:
            scores = sources.part(ABILITY)
            scores += harness_scores(ability, name, scores)
            said.append("general ability")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder / SUMMARY} is damaged: general_ability cannot be read ({error!r})") from error
    sources.given[str(folder)] = ", ".join(said)


def _read_file(path: Path, label: str | None, sources: Sources, default: str | None = None) -> None:
    data = _parse(path)
    section, kind = next(((section, kind) for section, kind in _kinds() if kind.fits(data)), (None, None))
    if section is None or kind is None:
        if path.name in (SUMMARY, RECORDS) and (path.parent / SUMMARY).is_file():
            return _read_folder(path.parent, label, sources)
        raise SourceError(f"{path} is nothing that a report can show. {understood()}")
    name = label or default or _folder_name(path.absolute().parent)
    rows = sources.part(section)
    try:
        new, said = kind.read(File(path, data, name, is_labelled=label is not None, beside=rows))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, CorsaError):
            raise
        raise SourceError(f"{path} looks like {kind.name}, and is damaged: {error!r}") from error
    rows += new
    sources.given[str(path)] = f"{kind.name}: {said}"
    return None


def _parse(path: Path) -> Any:
    """The data of a JSON file, or the list of those of a JSON Lines file, without a last line that was cut short.

    Raises:
        SourceError: It is neither, or not what was written, as far as it or a manifest beside it has a checksum.
    """
    try:
        manifest = read_manifest(path.parent)
        if manifest is not None and path.name in manifest.files:
            manifest.check(path.name)
    except DamagedError as error:
        raise SourceError(str(error)) from error
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError:
        raise SourceError(f"{path} is no text, and so nothing that a report can show. {understood()}") from None
    try:
        data = json_value(text)
    except ValueError as error:
        lines = [line for line in text[: text.rfind("\n") + 1].split("\n") if line.strip()]
        try:
            return [json_value(line) for line in lines] if lines else _raise(error)
        except ValueError:
            raise SourceError(f"{path} is neither JSON nor JSON Lines ({error}), or damaged. {understood()}") from None
    try:
        return unsealed(data, str(path))
    except DamagedError as error:
        raise SourceError(str(error)) from error


def _raise(error: Exception) -> Any:
    raise error
