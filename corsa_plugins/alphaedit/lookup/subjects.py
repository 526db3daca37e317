"""Where a prompt looks its fact up: the token of the subject that an edit's key and value are read at.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME): the last token of the subject, by default.
Positions count in the ids of :func:`corsa_plugins.model.tokenization.encode_prompt`, whatever stands in front (BOS or
nothing) and however the vocabulary attaches spaces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from corsa_plugins.data.requests import RequestError, quoted
from corsa_plugins.model.tokenization import as_asked, encode_prompt, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FactToken", "subject_position", "subject_span", "token_position"]

FactToken = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]
"""Which token: of the subject the last or the first one, the one behind the subject, or the last of the prompt."""


def subject_position(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    fact_token: FactToken = "subject_last",
    chat_template: bool = False,
) -> int:
    """The position of a subject's token among the ids of a prompt.

    >>> subject_position(tokenizer, "The capital of France is", "France")  # doctest: +SKIP
    4

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The prompt, written out in full.
        subject: What it is about; of several occurrences the one that :func:`subject_span` chooses.
        fact_token: Which token; ``"subject_first_after_last"`` is the last one where nothing follows the subject.
        chat_template: Whether the prompt is read through the tokenizer's chat template.

    Raises:
        RequestError: The subject is blank or does not occur in the prompt.
    """
    return token_position(tokenizer, prompt, subject_span(prompt, subject), fact_token, chat_template)


def subject_span(prompt: str, subject: str) -> tuple[int, int]:
    """First character of the subject in the prompt, and the one behind its last; whitespace at its ends is left out.

    Of several occurrences the last one counts: it is the one that has read most of the prompt, and the nearest one
    to the answer. An occurrence that is only part of a longer word ("Ana" in "Anatolia") counts if there is no other.

    Raises:
        RequestError: The subject is blank or does not occur in the prompt.
    """
    stripped = subject.strip()
    if not stripped:
        raise RequestError(f"the subject for the prompt {quoted(prompt)} is blank: say what the prompt is about")
    words = list(re.finditer(rf"(?<!\w){re.escape(stripped)}(?!\w)", prompt))
    start = words[-1].start() if words else prompt.rfind(stripped)
    if start < 0:
        raise RequestError(
            f"the subject {quoted(subject)} does not occur in the prompt {quoted(prompt)}: spell it as the prompt does"
        )
    return start, start + len(stripped)


def token_position(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    span: tuple[int, int],
    fact_token: FactToken = "subject_last",
    chat_template: bool = False,
) -> int:
    """As :func:`subject_position`, for the characters from ``span[0]`` up to, not with, ``span[1]`` of ``prompt``."""
    ids = encode_prompt(tokenizer, prompt, chat_template)
    if fact_token == "last":
        return len(ids) - 1
    text, start = as_asked(tokenizer, prompt, chat_template)
    span = (start + span[0], start + span[1])
    first, last = _by_offsets(tokenizer, text, ids, span) or _by_prefix(tokenizer, text, ids, span, chat_template)
    if fact_token == "subject_first":
        return first
    return min(last + 1, len(ids) - 1) if fact_token == "subject_first_after_last" else last


def _by_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], span: tuple[int, int]
) -> tuple[int, int] | None:
    """Positions of the first and the last token with characters of the span; ``None`` where no offsets tell."""
    if not tokenizer.is_fast:
        return None
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = len(ids) - len(plain["input_ids"])
    if before < 0 or ids[before:] != list(plain["input_ids"]):
        return None
    # A character of several bytes can be several tokens, each with the offsets of the whole character.
    first = [i for i, (start, end) in enumerate(plain["offset_mapping"]) if start <= span[0] < end]
    last = [i for i, (start, end) in enumerate(plain["offset_mapping"]) if start < span[1] <= end]
    # Some tokenizers report empty offsets, or one of them for everything.
    return (before + first[0], before + last[-1]) if first and last and first[0] <= last[-1] else None


def _by_prefix(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], span: tuple[int, int], chat_template: bool = False
) -> tuple[int, int]:
    """The same from the tokenisation of the text up to the end of the span, for tokenizers without offsets."""

    def starts(position: int) -> int:
        """How many characters of the text, whitespace at its start aside, the tokens up to ``position`` hold."""
        # special tokens are part of what a template writes, and in front of a plain prompt they are no text
        text = tokenizer.decode(
            ids[: position + 1], skip_special_tokens=not chat_template, clean_up_tokenization_spaces=False
        )
        return len(str(text).rstrip("\ufffd").lstrip())  # of a character cut in two, nothing is there yet

    blank = len(text) - len(text.lstrip())
    start, end = span[0] - blank, span[1] - blank
    until = encode_text(tokenizer, text[: span[1]], special=not chat_template)
    # A token that spans the end of the subject makes the two tokenisations differ.
    last = len(until) - 1
    if ids[: len(until)] != until:
        last = next((i for i in range(len(ids)) if starts(i) >= end), len(ids) - 1)
    first = next((i for i in range(last + 1) if starts(i) > start), last)
    return first, last
