"""Facts that a model may know, each with the forms that it is asked in; facts of the user's own, from a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from corsa_plugins.data.records import Record, Text
from corsa_plugins.errors import CorsaError, DamagedError
from corsa_plugins.files import sha256_of_file
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path
from corsa_plugins.sealed import read_sealed

__all__ = ["ABOUT", "PLACE", "Fact", "FactError", "Relation", "read_facts"]

ABOUT = "atlas.json"
"""Name of the file, beside facts that a model was found to know, that has their checksum."""

PLACE = "{}"
"""Where the subject goes in a form."""


class FactError(CorsaError, ValueError):
    """A file of facts that cannot be used; the message names the line and what to do."""


@dataclass(frozen=True)
class Relation:
    """What facts of one kind are called, and how they are asked: each form has ``{}`` where the subject goes.

    Attributes:
        name: Of the relation, for instance ``"capital"``.
        statements: Forms that the answer follows at once. The first is what is edited.
        questions: Forms that ask for the answer; the last of several is kept for choosing settings.
        follows: A relation of the *answer*, and a form that asks for it of the subject: an edit moves that too.
        reversal: A form that the subject follows, with ``{}`` where the answer goes, of a relation that no two subjects
            share an answer of.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    follows: tuple[str, str] | None = None
    reversal: str | None = None

    def fact(self, subject: str, answer: str, aliases: Iterable[str] = ()) -> Fact:
        """A fact of this relation."""
        others = tuple(dict.fromkeys(name for name in aliases if name != answer))
        return Fact(self.name, subject, answer, others, self.statements, self.questions, self.follows, self.reversal)


@dataclass(frozen=True)
class Fact:
    """What is true of ``subject`` in ``relation``, and how it is asked.

    Attributes:
        relation: Its name.
        subject: What it is about.
        answer: The answer as it is spelled first.
        aliases: Other right answers.
        statements: As for :class:`Relation`.
        questions: Likewise.
        follows: Likewise.
        reversal: Likewise.
    """

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    follows: tuple[str, str] | None = None
    reversal: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer, the first one first."""
        return (self.answer, *self.aliases)

    def written(self, form: str) -> str:
        """A form with the subject in its place."""
        return form.replace(PLACE, self.subject)


class _Line(Record):
    """A line of a file of facts, also of what an atlas wrote: in which forms a fact is known is read over."""

    relation: Text
    subject: Text
    answer: Text
    aliases: tuple[Text, ...] = ()
    statements: tuple[Text, ...] = ()
    questions: tuple[Text, ...] = ()
    forms: tuple[Text, ...] = ()


def read_facts(path: str | os.PathLike[str], known: Sequence[Relation] = ()) -> list[Fact]:
    """Facts from JSON Lines.

    Each line is an object: ``relation``, ``subject``, ``answer``, perhaps ``aliases``; and where its relation occurs
    for the first time, ``statements`` and ``questions``, its forms, with ``{}`` in the place of the subject::

        {"relation": "painter", "subject": "Guernica", "answer": "Picasso", "aliases": ["Pablo Picasso"],
         "statements": ["{} was painted by"], "questions": ["Who painted {}?"]}

    Args:
        path: The file.
        known: Relations whose forms need not be given.

    Raises:
        FactError: There is no such file, no fact in it, or something is wrong with a line, which is named; or it was
            written by :func:`~corsa_plugins.atlas.export.make_atlas`, and is not what was written.
    """
    _check_written(user_path(path))
    relations = {relation.name: relation for relation in known}
    facts: dict[tuple[str, str], Fact] = {}
    for where, line in _lines(path):
        given = Relation(line.relation, line.statements, line.questions)
        if given.statements or given.questions or line.relation not in relations:
            relations[line.relation] = _checked(given, where)
        fact = relations[line.relation].fact(line.subject, line.answer, line.aliases)
        earlier = facts.setdefault((fact.relation, fact.subject), fact)
        if earlier.answer != fact.answer:
            raise FactError(
                f"{where}: {fact.relation} of {fact.subject!r} is {fact.answer!r} here and {earlier.answer!r} before: "
                "keep one, and give the other as one of its aliases"
            )
    if not facts:
        raise FactError(f"{os.fspath(path)}: there are no facts in it")
    return list(facts.values())


def _check_written(path: Path) -> None:
    """Compare a file with its checksum, where one is noted beside it.

    Raises:
        FactError: It is another.
    """
    try:
        noted = read_sealed(path.parent / ABOUT).get("sha256")
        digest = noted.get(path.name) if isinstance(noted, dict) else None
        if digest is None or sha256_of_file(path) == digest:
            return
    except DamagedError as error:
        raise FactError(str(error)) from error
    except OSError:  # there is none; or no such file, which is told of where it is read
        return
    raise FactError(
        f"{path} is not the file that was written: restore it, or, if it was changed on purpose, copy it to another "
        "folder"
    )


def _checked(relation: Relation, where: str) -> Relation:
    if not relation.statements or not relation.questions:
        raise FactError(
            f"{where}: the relation {relation.name!r} needs forms where it occurs first: statements, such as "
            '["The capital of {} is"], and questions, such as ["What is the capital of {}?"]'
        )
    for form in (*relation.statements, *relation.questions):
        if form.count(PLACE) != 1:
            raise FactError(f"{where}: write {{}} once in {form!r}, where the subject goes")
    return relation


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, _Line]]:
    name = os.fspath(path)
    try:
        text = user_path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FactError(f"{name}: no such file (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FactError(f"{name} cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            yield where, _Line.model_validate(json_value(line))
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            field = ".".join(map(str, detail["loc"]))
            raise FactError(f"{where}: {field or 'the line'}: {detail['msg']}") from None
        except ValueError as error:
            raise FactError(f"{where}: not JSON: {error}") from None
