"""Descriptions of parts, for the base model to choose by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from corsa_plugins.bench.routing.templates import check_template
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.model.asking import generate_answers
from corsa_plugins.model.borrowing import adapters_off
from corsa_plugins.parsing import json_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DESCRIPTIONS", "list_prompts", "list_subjects", "read_descriptions", "summarise", "write_descriptions"]

DESCRIPTIONS = "descriptions.json"

SUMMARY_TEMPLATE = """\
{prompts}

In one sentence, the kinds of things and of relations that the questions above are about:"""


def list_prompts(requests: Sequence[EditRequest], count: int = 8) -> str:
    """A description of a part that needs no model: some of its prompts, evenly spaced, as they are.

    Raises:
        SettingError: There are no requests, or ``count`` is not positive.
    """
    return "; ".join(_spread([request.prompt for request in requests], count))


def list_subjects(requests: Sequence[EditRequest], count: int = 50) -> str:
    """A description of a part that needs no model: its subjects, or some of them, evenly spaced.

    Raises:
        SettingError: A request has no subject, or there are no requests, or ``count`` is not positive.
    """
    without = next((request for request in requests if request.subject is None), None)
    if without is not None:
        raise SettingError(f"{without.name()} has no subject: give it one, or describe by prompts")
    return ", ".join(_spread([str(request.subject) for request in requests], count))


def _spread(texts: Sequence[str], count: int) -> list[str]:
    if not texts or count < 1:
        raise SettingError(f"{count} prompts of {len(texts)} requests describe nothing: give at least one of each")
    texts = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    shown = min(count, len(texts))
    return [texts[len(texts) * number // shown] for number in range(shown)]


def summarise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    *,
    template: str = SUMMARY_TEMPLATE,
    count: int = 30,
    max_new_tokens: int = 80,
    chat_template: bool = False,
) -> str:
    """A description of a part in the base model's own words, as in the paper; :func:`list_prompts` if it says nothing.

    Args:
        model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
        tokenizer: Its tokenizer.
        requests: Of the part.
        template: With ``{prompts}`` where the prompts go, one on a line.
        count: How many prompts it is shown, evenly spaced.
        max_new_tokens: Length of the description in tokens.
        chat_template: Ask through the chat template.

    Raises:
        SettingError: No requests, or no ``{prompts}`` in the template.
    """
    check_template(template, "prompts")
    prompts = "\n".join(_spread([request.prompt for request in requests], count))
    with adapters_off(model):
        (answer,) = generate_answers(
            model,
            tokenizer,
            [template.replace("{prompts}", prompts)],
            max_new_tokens=max_new_tokens,
            chat_template=chat_template,
        )
    return " ".join(answer.text.split()) or list_prompts(requests)


def write_descriptions(descriptions: Mapping[str, str], path: str | os.PathLike[str]) -> Path:
    """Write descriptions by the name of their adapter, as JSON, to be read, edited, and read back."""
    return atomic_write_text(path, json.dumps(dict(descriptions), indent=2, ensure_ascii=False) + "\n")


def read_descriptions(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, str]:
    """The descriptions of adapters, in the order of ``names``, whatever their order in the file.

    Raises:
        SettingError: There is no such file, it is not JSON, or it is not of these adapters.
    """
    file = Path(path)
    try:
        content = json_value(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{file}: no such file of descriptions") from None
    except ValueError as error:
        raise SettingError(f"{file} is not JSON: {error}") from None
    fits = isinstance(content, Mapping) and all(isinstance(text, str) and text.strip() for text in content.values())
    if not fits or set(content) != set(names):
        raise SettingError(f"{file}: it should hold a description for each of {', '.join(names)}, and no others")
    return {name: content[name] for name in names}
