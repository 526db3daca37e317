"""Making requests and probes of what was taken out of a record; what has no place in one is counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from corsa_plugins.data.formats.base import Drops, RecordError
from corsa_plugins.data.formats.fields import optional_text, record_at, require_text
from corsa_plugins.data.requests import EditRequest, Probe, normalise_whitespace

__all__ = [
    "ONE_HOP",
    "ONE_HOP_DROPPED",
    "case_id",
    "fill",
    "make_request",
    "not_excluded",
    "one_hop",
    "outdated",
    "place_subject",
    "probe",
    "probe_of_answers",
]


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
    made = probe(prompt, first, others)
    drops.add(f"{where} (repeated answers)", len(others) - len(made.aliases))
    return made


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
