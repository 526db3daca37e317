"""Edit requests: the facts to change, validated.

As a line of a file (:mod:`corsa_plugins.data.reading`)::

    {"prompt": "The capital of Kazakhstan is", "target_new": "Astana", "target_old": "Nur-Sultan",
     "subject": "Kazakhstan", "paraphrases": ["Which city is Kazakhstan's seat of government?"],
     "neighborhood": [{"prompt": "The capital of Uzbekistan is", "answer": "Tashkent"}], "case_id": 1}

Only ``prompt`` and ``target_new`` are required; ``portability`` and ``reversed`` are lists of probes too. A probe may
list other right answers as ``aliases``. A prompt is written out in full: EasyEdit's ``"{}"`` is not filled in (a prompt
about code may contain one), and a request whose subject is missing from such a prompt is refused with the filled-in
text to use instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import (
    BaseModel,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from corsa_plugins.data.records import CaseId, Record, Text
from corsa_plugins.errors import CorsaError

__all__ = ["EditRequest", "Probe", "RequestError", "input_key", "normalise_whitespace", "quoted"]

MAX_REPORTED = 20
"""How many problems of one file an error lists; the rest is counted."""

_SHOWN = 200  # characters of a text in a message


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


def normalise_whitespace(text: str) -> str:
    """``text`` with every run of whitespace as one space and none at the ends: how prompts are compared."""
    return " ".join(text.split())


class Probe(Record):
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


class EditRequest(Record):
    """One fact to change. Immutable; equal when all fields are equal.

    Attributes:
        prompt: The edit prompt, written out in full; the answer follows it.
        target_new: The answer wanted from now on (y+), without a leading space.
        subject: What the fact is about; must occur in ``prompt``. Locate-then-edit methods need it.
        target_old: The outdated answer (y-); see :func:`corsa_plugins.data.preferences.fill_target_old`.
        paraphrases: Other wordings of the prompt, to *test* with (generality); never trained on.
        neighborhood: Probes of facts nearby that must keep their answers (specificity).
        portability: Probes of facts that follow from the new one.
        reversed: Probes that ask for the subject by the new answer ("Astana is the capital of"); tested alone by
            :mod:`corsa_plugins.bench.wild`.
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
    reversed: tuple[Probe, ...] = ()
    validation_prompts: tuple[Text, ...] = ()
    case_id: CaseId = None

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
        for field in ("neighborhood", "portability", "reversed"):
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

    @model_serializer(mode="wrap")
    def _without_empty_reversed(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What identifies a file of requests must not change because requests can have reversals.
        fields: dict[str, Any] = handler(self)
        if not self.reversed:
            fields.pop("reversed", None)
        return fields

    def name(self, index: int | None = None) -> str:
        """How messages refer to this request: its case id, else its place ``index``, with its prompt."""
        if self.case_id is not None:
            return f"case {self.case_id!r} ({quoted(self.prompt)})"
        return quoted(self.prompt) if index is None else f"request {index} ({quoted(self.prompt)})"


def input_key(items: Sequence[BaseModel]) -> dict[str, str]:
    """Identifies what is asked: a hash of the requests and facts, in order."""
    digest = hashlib.sha256()
    for item in items:
        line = json.dumps([type(item).__name__, item.model_dump(mode="json")]) + "\n"
        digest.update(line.encode("ascii"))
    return {"requests": digest.hexdigest()[:16]}


def quoted(text: str) -> str:
    """The text in quotes for a message: with its control characters written out, and no more than its beginning."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
