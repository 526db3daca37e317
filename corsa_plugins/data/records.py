"""What every record of ours checks: text that can be saved, and unknown fields answered by the one that was meant."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, StrictStr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = ["CaseId", "Record", "Text"]

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
"""Text that is not blank."""

CaseId = Annotated[str | int | None, PlainValidator(_name_or_number)]
"""A name that a caller gives a request."""


class Record(BaseModel):
    """Immutable, with no fields but its own; a wrong field is answered by the one that was probably meant."""

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
