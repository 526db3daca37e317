"""Edit requests: the facts to change, validated, as JSON Lines in and out.

One line is one request::

    {"prompt": "The capital of Kazakhstan is", "target_new": "Astana", "target_old": "Nur-Sultan",
     "subject": "Kazakhstan", "paraphrases": ["Which city is Kazakhstan's seat of government?"],
     "neighborhood": [{"prompt": "The capital of Uzbekistan is", "answer": "Tashkent"}], "case_id": 1}

Only ``prompt`` and ``target_new`` are required. A probe may list other right answers as ``aliases``. A prompt is
written out in full: EasyEdit's ``"{}"`` is not filled in (a prompt about code may contain one), and a request whose
subject is missing from such a prompt is refused with the filled-in text to use instead.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    SerializerFunctionWrapHandler,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_write_text

__all__ = [
    "EditRequest",
    "Probe",
    "RequestConflict",
    "RequestError",
    "RequestIssues",
    "check_requests",
    "read_probes",
    "read_requests",
    "write_probes",
    "write_requests",
]

logger = logging.getLogger(__name__)

MAX_REPORTED = 20
"""How many problems of one file an error lists; the rest is counted."""

_FOREIGN_NAMES = {
    "rephrase_prompt": "paraphrases",
    "rephrase_prompts": "paraphrases",
    "rephrase": "paraphrases",
    "paraphrase_prompts": "paraphrases",
    "ground_truth": "target_old",
    "target_true": "target_old",
    "old_answer": "target_old",
    "target": "target_new",
    "alt": "target_new",
    "new_answer": "target_new",
    "locality": "neighborhood",
    "neighborhood_prompts": "neighborhood",
    "neighbourhood": "neighborhood",
    "question": "prompt",
    "src": "prompt",
    "id": "case_id",
    "answer_alias": "aliases",
    "new_answer_alias": "aliases",
}
"""What other tools call our fields, for the hint in an error; the close spellings are found by likeness."""


class RequestError(CorsaError, ValueError):
    """A requests file, or a request, that cannot be used.

    Attributes:
        problems: One line each: file, line, case and field, what is wrong, and what to do.
    """

    def __init__(self, problems: Sequence[str] | str, heading: str = "") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        shown = list(self.problems[:MAX_REPORTED])
        if len(self.problems) > MAX_REPORTED:
            shown.append(f"... and {len(self.problems) - MAX_REPORTED} more")
        if heading and len(shown) > 1:
            shown = [heading, *(f"  {line}" for line in shown)]
        super().__init__("\n".join(shown))


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "is blank: give it some text, or leave the field out if it is optional")
    return _is_unicode(text)


def _is_unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "surrogate",
            "half a surrogate pair at character {at}: text that is not Unicode cannot be tokenised or saved; repair it",
            {"at": error.start + 1},
        ) from None
    return text


def _name_or_number(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return None if value is None else _is_unicode(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise PydanticCustomError("case_id", "should be a string or an integer")


Text = Annotated[StrictStr, AfterValidator(_not_blank)]


def normalise_whitespace(text: str) -> str:
    """``text`` with every run of whitespace as one space and none at the ends: how prompts are compared."""
    return " ".join(text.split())


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_field_that_was_meant(cls, data: Any, handler: Any) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__, [_with_hint(cls, detail) for detail in error.errors(include_url=False)]
            ) from None


_PLAIN = {
    "missing": "is missing: add it",
    "string_type": "should be a string",
    "tuple_type": "should be a list",
    "model_type": "should be an object with the fields of a probe, or a string",
}


def _with_hint(model: type[BaseModel], detail: Any) -> InitErrorDetails:
    location, kind = detail["loc"], detail["type"]
    message = detail["msg"]
    if kind == "extra_forbidden" and len(location) == 1:
        name, known = str(location[0]), list(model.model_fields)
        foreign = _FOREIGN_NAMES.get(name.lower(), "")
        close = [foreign] if foreign in known else difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'?" if close else f"the fields are {', '.join(known)}"
        message = f"unknown field; {hint}"
    elif kind in _PLAIN:
        message = _PLAIN[kind]
    # the message is final: braces in it are text, not placeholders
    return {
        "type": PydanticCustomError(kind, "{message}", {"message": message}),
        "loc": location,
        "input": detail["input"],
    }


class Probe(_Record):
    """A question about something an edit should leave alone, or should carry over to.

    A JSON string is read as a probe without an answer.

    Attributes:
        prompt: What the model is asked.
        answer: The right answer; ``None`` when only the change of the output is of interest.
        aliases: Other right answers, any of which counts as right: other names of it, or other answers of a question
            that has several. Probabilities and top-1 verdicts are those of ``answer`` alone. Repetitions of an answer,
            whitespace aside, are left out; case is kept, as short aliases are told by it.
    """

    prompt: Text
    answer: Text | None = None
    aliases: tuple[Text, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, data: Any) -> Any:
        return {"prompt": data} if isinstance(data, str) else data

    @field_validator("aliases")
    @classmethod
    def _aliases_are_others(cls, aliases: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        answer = info.data.get("answer")
        if aliases and "answer" in info.data and answer is None:
            raise PydanticCustomError(
                "aliases_alone", "are other names of an answer that is missing: give one of them as the answer"
            )
        seen = {normalise_whitespace(answer)} if answer is not None else set()
        others = []
        for alias in aliases:
            key = normalise_whitespace(alias)
            if key not in seen:
                seen.add(key)
                others.append(alias)
        return tuple(others)

    @model_serializer(mode="wrap")
    def _without_empty_aliases(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What identifies a file of requests must not change because probes can have aliases.
        fields: dict[str, Any] = handler(self)
        if not self.aliases:
            fields.pop("aliases", None)
        return fields


class EditRequest(_Record):
    """One fact to change. Immutable; equal when all fields are equal.

    Attributes:
        prompt: The edit prompt, written out in full; the answer follows it.
        target_new: The answer wanted from now on (y+), without a leading space.
        subject: What the fact is about; must occur in ``prompt``. Locate-then-edit methods need it.
        target_old: The outdated answer (y-); see :func:`corsa_plugins.data.preferences.fill_target_old`.
        paraphrases: Other wordings of the prompt, to *test* with (generality); never trained on.
        neighborhood: Probes of facts nearby that must keep their answers (specificity).
        portability: Probes of facts that follow from the new one.
        validation_prompts: Prompts to choose settings with; none of them may be a test prompt.
        case_id: The caller's name for the request, used in messages and records.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) names each field that is wrong, why, and what to do.
    """

    prompt: Text
    target_new: Text
    subject: Text | None = None
    target_old: Text | None = None
    paraphrases: tuple[Text, ...] = ()
    neighborhood: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    validation_prompts: tuple[Text, ...] = ()
    case_id: Annotated[str | int | None, PlainValidator(_name_or_number)] = None

    # Checks across fields sit on the later field, so that every wrong field of a request is reported, not the first.
    @field_validator("subject")
    @classmethod
    def _subject_occurs(cls, subject: str | None, info: ValidationInfo) -> str | None:
        prompt = info.data.get("prompt")
        if subject is None or prompt is None or subject in prompt:
            return subject
        if "{}" in prompt:
            todo = f"the prompt is a template; write it out: {prompt.replace('{}', subject)!r}"
        else:
            todo = "spell it as the prompt does, or leave it out"
        raise PydanticCustomError(
            "subject_absent",
            "{subject} does not occur in the prompt {prompt}: {todo}",
            {"subject": repr(subject), "prompt": repr(prompt), "todo": todo},
        )

    @field_validator("target_old")
    @classmethod
    def _targets_differ(cls, target_old: str | None, info: ValidationInfo) -> str | None:
        target_new = info.data.get("target_new")
        if target_old and target_new and normalise_whitespace(target_old) == normalise_whitespace(target_new):
            raise PydanticCustomError(
                "targets_equal",
                "is the same as target_new ({target}): nothing to edit; give the outdated answer or leave it out",
                {"target": repr(target_new)},
            )
        return target_old

    @field_validator("validation_prompts")
    @classmethod
    def _validation_is_not_test(cls, prompts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        tests = {normalise_whitespace(prompt): "paraphrases" for prompt in info.data.get("paraphrases", ())}
        for field in ("neighborhood", "portability"):
            tests.update({normalise_whitespace(probe.prompt): field for probe in info.data.get(field, ())})
        for prompt in prompts:
            field = tests.get(normalise_whitespace(prompt), "")
            if field:
                raise PydanticCustomError(
                    "validation_repeats_test",
                    "{prompt} is also in {field}: choosing settings on a test prompt would inflate the results; "
                    "remove it from one of them",
                    {"prompt": repr(prompt), "field": field},
                )
        return prompts

    def name(self, index: int | None = None) -> str:
        """How messages refer to this request: its case id, else its place ``index``, with its prompt."""
        if self.case_id is not None:
            return f"case {self.case_id!r} ({self.prompt!r})"
        return f"{self.prompt!r}" if index is None else f"request {index} ({self.prompt!r})"


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


def read_requests(path: str | os.PathLike[str]) -> list[EditRequest]:
    """Read edit requests from a JSON Lines file (UTF-8, a byte order mark and blank lines tolerated).

    Args:
        path: The file; one JSON object per line with the fields of :class:`EditRequest`.

    Returns:
        The requests, in the order of the file. Duplicates are kept, with a warning in the log.

    Raises:
        RequestError: Listing together, by line, everything that is wrong: no such file, a directory, nothing in it,
            not UTF-8, not JSON, not an object, wrong or unknown fields, and contradicting requests.
    """
    lines, requests, problems = _read_records(path, EditRequest)
    issues = check_requests(requests)
    for conflict in issues.contradictions:
        asked = ", ".join(f"{requests[i].target_new!r} (line {lines[i]})" for i in conflict.indices)
        problems.append(
            f"{os.fspath(path)}, lines {_join(lines[i] for i in conflict.indices)}: contradiction: the prompt "
            f"{conflict.prompt!r} is given different target_new: {asked}; keep one"
        )
    if problems:
        raise RequestError(problems, f"{os.fspath(path)}: {len(problems)} problems")
    for conflict in issues.duplicates:
        logger.warning(
            "%s, lines %s: the same request (%r -> %r) more than once; it will count more than once",
            os.fspath(path),
            _join(lines[i] for i in conflict.indices),
            conflict.prompt,
            conflict.targets[0],
        )
    return requests


def write_requests(path: str | os.PathLike[str], requests: Iterable[EditRequest]) -> None:
    """Write requests as JSON Lines, completely or not at all; :func:`read_requests` gives equal requests back.

    Fields left at their default are left out.

    Raises:
        RequestError: There are no requests, or some contradict each other: the file could not be read back.
        OSError: The file cannot be written.
    """
    requests = list(requests)
    contradictions = check_requests(requests).contradictions
    if contradictions:
        raise RequestError(
            [
                f"{os.fspath(path)} was not written: requests {_join(c.indices)} contradict each other: the prompt "
                f"{c.prompt!r} is given {' and '.join(map(repr, c.targets))}; keep one"
                for c in contradictions
            ]
        )
    _write_records(path, requests, "requests")


def read_probes(path: str | os.PathLike[str]) -> list[Probe]:
    """Read probes (untouched facts, for instance) from JSON Lines: objects ``{"prompt", "answer"}`` or strings.

    An object may also have ``aliases``, a list of other right answers.

    A line with a ``target_new`` is read as an edit request, and its prompt and ``target_new`` are taken as a fact and
    its true answer: facts to watch may be kept in the format of the facts to edit.

    Raises:
        RequestError: As :func:`read_requests`.
    """
    _, records, problems = _read_records(path, Probe, EditRequest)
    if problems:
        raise RequestError(problems, f"{os.fspath(path)}: {len(problems)} problems")
    return [
        Probe(prompt=record.prompt, answer=record.target_new) if isinstance(record, EditRequest) else record
        for record in records
    ]


def write_probes(path: str | os.PathLike[str], probes: Iterable[Probe]) -> None:
    """Write probes as JSON Lines, completely or not at all; :func:`read_probes` gives equal probes back.

    Raises:
        RequestError: There are no probes.
        OSError: The file cannot be written.
    """
    _write_records(path, list(probes), "probes")


_R = TypeVar("_R", bound=_Record)
_E = TypeVar("_E", bound=_Record)


def _join(numbers: Iterable[int]) -> str:
    texts = [str(number) for number in numbers]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _write_records(path: str | os.PathLike[str], records: Sequence[_Record], what: str) -> None:
    if not records:
        raise RequestError(f"{os.fspath(path)} was not written: there are no {what}")
    rows = (record.model_dump(mode="json", exclude_defaults=True) for record in records)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_records(
    path: str | os.PathLike[str], kind: type[_R], edits: type[_E] | None = None
) -> tuple[list[int], list[_R | _E], list[str]]:
    """The records of a file with their line numbers, and what is wrong with the other lines.

    Lines with a target_new are read as ``edits``, if that is given, all others as ``kind``.
    """
    name = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{name}: no such file: check the path (looked in {Path.cwd()})") from None
    except IsADirectoryError:
        raise RequestError(f"{name}: is a directory: name a JSON Lines file in it") from None
    except OSError as error:
        raise RequestError(f"{name}: cannot be read: {error.strerror or error}") from error
    lines: list[int] = []
    records: list[_R | _E] = []
    problems: list[str] = []
    seen = False
    # Only a newline ends a line: JSON strings may hold U+2028 and others at which str.splitlines would cut.
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        seen = True
        where = f"{name}, line {number}"
        try:
            value = _parse_line(raw, accepts_text=kind is Probe)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        try:
            is_edit = isinstance(value, Mapping) and "target_new" in value
            records.append((edits if edits and is_edit else kind).model_validate(value))
        except ValidationError as error:
            case = f", case {value['case_id']!r}" if isinstance(value, Mapping) and "case_id" in value else ""
            problems += _explain(f"{where}{case}", error)
        else:
            lines.append(number)
    if not seen:
        raise RequestError(f"{name}: is empty: write one JSON object per line, with at least a prompt")
    return lines, records, problems


def _parse_line(raw: bytes, *, accepts_text: bool) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_object_without_repeats)
    except json.JSONDecodeError as error:
        hint = "write one complete JSON object on one line"
        if text.lstrip().startswith("["):
            hint = "this looks like a JSON array; " + hint + ", without brackets and commas around them"
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}; {hint}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    if isinstance(value, dict) or (accepts_text and isinstance(value, str)):
        return value
    kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), f"the value {str(value)[:40]}")
    raise ValueError(f'{kind} instead of a JSON object: write one object per line, as in {{"prompt": ...}}')


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {repeated!r} is given twice: keep one")
    return record


def _explain(where: str, error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False):
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        lines.append(f"{where}, field '{field}': {detail['msg']}" if field else f"{where}: {detail['msg']}")
    return lines
