"""Edit requests as rows of token ids, each with the position its fact is looked up at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corsa_plugins.alphaedit.lookup.subjects import FactToken, subject_span, token_position
from corsa_plugins.data.requests import EditRequest, RequestError
from corsa_plugins.model.limits import longest_text, vocabulary_size
from corsa_plugins.model.tokenization import TokenizationError, encode_prompt, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Row", "prompt_rows", "rewriting_rows"]

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class Row:
    """One text a model reads.

    Attributes:
        ids: Not padded.
        position: Of the token the fact is looked up at.
        targets: The tokens that should follow the last ``len(targets)`` positions of ``ids``, one each.
    """

    ids: tuple[int, ...]
    position: int
    targets: tuple[int, ...] = ()


def prompt_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    fact_token: FactToken,
    chat_template: bool = False,
) -> list[list[Row]]:
    """For each request its prompt in each of the contexts (templates with one ``{}``).

    Raises:
        RequestError: No requests; or, listed together, those without a subject, that give no tokens, or that are too
            long for the model.
    """

    def rows(request: EditRequest) -> list[Row]:
        subject = request.subject or ""
        texts = [_in_context(tokenizer, c, request.prompt, subject, fact_token, chat_template) for c in contexts]
        return [Row(tuple(encode_prompt(tokenizer, text, chat_template)), position) for text, position in texts]

    return _each(model, requests, rows)


def rewriting_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    fact_token: FactToken,
    chat_template: bool = False,
) -> list[list[Row]]:
    """For each request its prompt in each context with ``target_new`` behind it, and last "{subject} is a".

    The last token of the target is predicted, never read. Prompt and target are joined as everywhere else
    (:func:`corsa_plugins.model.tokenization.join`), so that what a value is optimised for is what evaluation asks.

    Raises:
        RequestError: As :func:`prompt_rows`, and for a target that gives no tokens.
    """

    def rows(request: EditRequest) -> list[Row]:
        rows = []
        subject = request.subject or ""
        for context in contexts:
            text, position = _in_context(tokenizer, context, request.prompt, subject, fact_token, chat_template)
            prompt_ids, target_ids = join(tokenizer, text, request.target_new, chat_template)
            rows.append(Row((*prompt_ids, *target_ids[:-1]), position, tuple(target_ids)))
        # the subject is the one at the start, whatever it is: "a is a"
        text, position = _in_context(tokenizer, KL_PROMPT, subject.strip(), subject, fact_token, chat_template)
        # what follows the position does not matter to what is predicted there
        return [*rows, Row(tuple(encode_prompt(tokenizer, text, chat_template))[: position + 1], position)]

    return _each(model, requests, rows)


def _in_context(
    tokenizer: PreTrainedTokenizerBase,
    context: str,
    prompt: str,
    subject: str,
    fact_token: FactToken,
    chat_template: bool,
) -> tuple[str, int]:
    """The prompt in its context, and the position of the prompt's subject, not of one that the context has too."""
    before, _, after = context.partition("{}")
    # Counted in the prompt alone: what follows it, target or not, must not move where the fact is looked up.
    start, end = subject_span(prompt, subject)
    text = before + prompt + after
    span = (len(before) + start, len(before) + end)
    return text, token_position(tokenizer, text, span, fact_token, chat_template)


def _each(
    model: PreTrainedModel, requests: Sequence[EditRequest], rows: Callable[[EditRequest], list[Row]]
) -> list[list[Row]]:
    if not requests:
        raise RequestError("there are no edit requests: give at least one")
    longest, vocabulary = longest_text(model), vocabulary_size(model)
    made: list[list[Row]] = []
    problems: list[str] = []
    for index, request in enumerate(requests):
        name = request.name(index)
        if request.subject is None:
            problems.append(f"{name}: it has no subject, and its fact is looked up there: add one")
            continue
        try:
            of_request = rows(request)
        except (RequestError, TokenizationError) as error:
            problems.append(f"{name}: {error}")
            continue
        length = max(len(row.ids) + bool(row.targets) for row in of_request)
        unknown = max(max(row.ids + row.targets) for row in of_request)
        if longest is not None and length > longest:
            problems.append(
                f"{name}: {length} tokens with its context, and the model reads {longest}: shorten the prompt"
            )
        elif unknown >= vocabulary:
            problems.append(
                f"{name}: token {unknown}, and the model embeds {vocabulary}: use the model's own tokenizer"
            )
        made.append(of_request)
    if problems:
        raise RequestError(problems, f"{len(problems)} edit requests cannot be used")
    return made
