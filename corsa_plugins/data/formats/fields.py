"""Taking fields out of records that may hold anything, and making them into requests."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from corsa_plugins.data.formats.base import Drops, RecordError
from corsa_plugins.data.requests import EditRequest, Probe, normalise_whitespace

__all__ = [
    "ONE_HOP",
    "ONE_HOP_DROPPED",
    "as_text",
    "case_id",
    "covers",
    "fill",
    "first_text",
    "has_field",
    "kind",
    "leaf_fields",
    "listed",
    "make_request",
    "not_excluded",
    "objects",
    "one_hop",
    "optional_text",
    "outdated",
    "place_subject",
    "printable",
    "probe",
    "probe_of_answers",
    "record_at",
    "require_text",
    "texts",
    "texts_in",
]


def printable(text: str, longest: int = 600) -> str:
    """Text from a record, so that it can be written to any terminal: cut, and without halves of surrogate pairs."""
    cut = text if len(text) <= longest else f"{text[:longest]} ..."
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")


def kind(value: Any) -> str:
    """What a JSON value is called in a message."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def as_text(value: Any) -> str | None:
    """``value`` as text without space around it: a string, or a number as it is written; ``None`` for the rest."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    try:
        return str(value)
    except ValueError:  # more digits than Python converts
        return None


def require_text(record: Mapping[str, Any], name: str, where: str = "") -> str:
    """The text of a field that a request cannot do without.

    Raises:
        RecordError: It is missing, blank, or not text.
    """
    value = record.get(name)
    text = as_text(value)
    if text is None:
        wrong = "is missing" if name not in record else "is blank" if isinstance(value, str) else f"is {kind(value)}"
        raise RecordError(f"field '{where}{name}' {wrong}; it should be text")
    return text


def optional_text(record: Mapping[str, Any], name: str, where: str = "") -> str | None:
    """The text of a field that may be missing, null or blank.

    Raises:
        RecordError: It is something else than text.
    """
    value = record.get(name)
    if value is None or value == "":
        return None
    return require_text(record, name, where) if not isinstance(value, str) else as_text(value)


def record_at(record: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    """The object in a field.

    Raises:
        RecordError: It is missing or not an object.
    """
    value = record.get(name)
    if not isinstance(value, Mapping):
        wrong = f"is {kind(value)}" if name in record else "is missing"
        raise RecordError(f"field '{where}{name}' {wrong}; it should be an object")
    return value


def listed(record: Mapping[str, Any], name: str, where: str = "") -> list[Any]:
    """The list in a field; empty when it is missing or null.

    Raises:
        RecordError: It is something else.
    """
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RecordError(f"field '{where}{name}' is {kind(value)}; it should be a list")
    return value


def objects(record: Mapping[str, Any], name: str, where: str = "") -> list[Mapping[str, Any]]:
    """The list of objects in a field; empty when it is missing or null.

    Raises:
        RecordError: It is not a list, or something in it is not an object.
    """
    items = listed(record, name, where)
    for at, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise RecordError(f"field '{where}{name}[{at}]' is {kind(item)}; it should be an object")
    return items


def texts(record: Mapping[str, Any], name: str, where: str = "") -> list[str]:
    """The texts in a field that holds a list of them or a single one; blank ones are left out.

    Raises:
        RecordError: Something in it is not text.
    """
    value = record.get(name)
    items = value if isinstance(value, list) else [] if value is None else [value]
    found = []
    for at, item in enumerate(items):
        text = as_text(item)
        if text is not None:
            found.append(text)
        elif item is not None and not isinstance(item, str):
            raise RecordError(f"field '{where}{name}[{at}]' is {kind(item)}; it should be text")
    return found


def texts_in(value: Any) -> list[str]:
    """The texts of a list of lists of texts, however deep, in order; anything else in it is left out."""
    found = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
            continue
        text = as_text(item)
        if text is not None:
            found.append(text)
    return found


def first_text(value: Any) -> tuple[str | None, int]:
    """The first of :func:`texts_in`, and how many more there are."""
    found = texts_in(value)
    return (found[0], len(found) - 1) if found else (None, 0)


_EXCLUDES = re.compile(r", which is not (.+), (?:is|are)$")


def not_excluded(prompt: str, answers: list[list[str]]) -> list[list[str]]:
    """The answers, each with its aliases, that a question of the form "..., which is not X, is" leaves.

    RippleEdits and KnowEdit ask so for what else is true of a relation with several answers, and list X among them.
    """
    match = _EXCLUDES.search(prompt)
    if match is None:
        return answers
    excluded = normalise_whitespace(match.group(1)).casefold()
    return [names for names in answers if all(normalise_whitespace(name).casefold() != excluded for name in names)]


def fill(template: str, subject: str) -> str:
    """A template with every ``{}`` replaced by the subject."""
    return template.replace("{}", subject)


def place_subject(subject: str | None, prompt: str, drops: Drops) -> str | None:
    """The subject as the prompt spells it; ``None``, counted as dropped, when the prompt does not name it."""
    if subject is None or subject in prompt:
        return subject
    match = re.search(re.escape(subject), prompt, re.IGNORECASE)
    if match is None:
        drops.add("subject (not named in the prompt)")
    return match.group() if match else None


def case_id(record: Mapping[str, Any], index: int, name: str = "case_id") -> str | int:
    """The record's own name, or its index when it has none."""
    value = record.get(name)
    return value if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else index


def outdated(old: str | None, new: str, drops: Drops, name: str) -> str | None:
    """The outdated answer; ``None``, counted as dropped, when it is the new one: some records ask for what is true."""
    if old is not None and normalise_whitespace(old) == normalise_whitespace(new):
        drops.add(f"{name} (the same as the target)")
        return None
    return old


def probe(prompt: str, answer: str | None, aliases: Sequence[str] = ()) -> Probe:
    """A probe; aliases that repeat an answer are left out.

    Raises:
        RecordError: Its prompt or an answer is not usable text, or there are aliases of no answer.
    """
    try:
        return Probe(prompt=prompt, answer=answer, aliases=tuple(aliases))
    except ValidationError as error:
        raise RecordError(_reasons(error)) from None


def probe_of_answers(prompt: str, answers: Sequence[Sequence[str]], drops: Drops, where: str) -> Probe | None:
    """A probe with the first of several answers, each given with its other names, as its answer; the rest are aliases.

    Answers that the question excludes (:func:`not_excluded`), and repetitions, are counted as dropped.

    Args:
        prompt: The question.
        answers: At least one answer, each with at least one name.
        drops: Where to count.
        where: The field they are from.

    Returns:
        ``None``, counted as dropped, where the question excludes every answer.

    Raises:
        RecordError: The prompt or a name is not usable text.
    """
    left = not_excluded(prompt, [list(names) for names in answers])
    if not left:
        drops.add(f"{where} (no answer but the excluded one)")
        return None
    drops.add(f"{where} (answers that the question excludes)", sum(map(len, answers)) - sum(map(len, left)))
    first, *others = (name for names in left for name in names)
    found = probe(prompt, first, others)
    drops.add(f"{where} (repeated answers)", len(others) - len(found.aliases))
    return found


ONE_HOP = {
    "portability.New Question": "portability",
    "portability.New Answer": "the answer of the portability probe",
}
"""What EasyEdit adds to records of CounterFact and ZsRE, and what becomes of it."""

ONE_HOP_DROPPED = {"portability.Recalled Relation": "the fact that leads to the new question"}


def one_hop(record: Mapping[str, Any]) -> tuple[Probe, ...]:
    """The question that EasyEdit's ``..._portability_gpt4.json`` add to a record; none in other files.

    Raises:
        RecordError: It is not a question.
    """
    added = record.get("portability")
    # A data set on the Hub has the fields in all its records, with null where there is nothing.
    if not added or (isinstance(added, Mapping) and not any(added.values())):
        return ()
    added = record_at(record, "portability")
    where = "portability."
    return (probe(require_text(added, "New Question", where), optional_text(added, "New Answer", where)),)


def make_request(drops: Drops, *, paraphrases: Iterable[str] = (), **fields: Any) -> EditRequest:
    """A request of these fields; paraphrases that repeat the prompt or each other are left out and counted.

    Raises:
        RecordError: The fields do not make a valid request; every reason is given.
    """
    seen = {normalise_whitespace(str(fields.get("prompt")))}
    kept = []
    for text in paraphrases:
        key = normalise_whitespace(text)
        if key in seen:
            drops.add("paraphrases (repeat the prompt or each other)")
            continue
        seen.add(key)
        kept.append(text)
    try:
        return EditRequest(paraphrases=tuple(kept), **fields)
    except ValidationError as error:
        raise RecordError(_reasons(error)) from None


def _reasons(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
        for detail in error.errors(include_url=False)
    )


def has_field(record: Any, path: str) -> bool:
    """Whether a record holds a value, not null, at a path; lists are entered at their first element."""
    value = record
    for part in path.split("."):
        name, brackets, _ = part.partition("[]")
        if not isinstance(value, Mapping) or value.get(name) is None:
            return False
        value = value[name]
        if brackets:
            if not isinstance(value, list) or not value:
                return False
            value = value[0]
    return value is not None


def leaf_fields(record: Mapping[str, Any]) -> Iterator[str]:
    """The path of every value of a record that is not null and not empty, once for each value."""
    stack: list[tuple[str, Any]] = [(str(name), value) for name, value in record.items()]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend((f"{path}.{name}", inner) for name, inner in value.items())
        elif isinstance(value, list):
            stack.extend((f"{path}[]", inner) for inner in value)
        elif value is not None and value != "":
            yield path


def covers(field: str, path: str) -> bool:
    """Whether a field is at ``path`` or holds what is there."""
    return path == field or path.startswith((f"{field}.", f"{field}["))
