"""Joining a prompt and its answer: the one place that knows about leading spaces, BOS and chat templates.

Training, scoring and generation must agree on which tokens are the prompt's and which are the answer's, or a model is
trained on one sequence and asked another. The rule here:

* text: one space goes between prompt and answer, unless either side already has whitespace there or none belongs
  there: behind an opening bracket or quotation mark, and behind scripts that are written without spaces (Chinese,
  Japanese, Thai, Lao, Khmer, Burmese). Spaces at the end of a prompt move over to the answer, because subword
  vocabularies attach a space to the word that follows it; asked with a bare space token at its end, a model is off the
  text it was trained on. In a chat the answer begins as the template writes it; whitespace around it does not count,
  and a template that can leave thinking out (``enable_thinking``, as Qwen 3's) does: the answer comes at once.
* tokens: the prompt's ids are those of the prompt alone, as it is asked in generation; the answer's ids are those
  that follow it in the tokenisation of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from corsa_plugins.errors import CorsaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["JoinedIds", "TokenizationError", "as_asked", "encode_prompt", "encode_text", "join", "separate"]


class TokenizationError(CorsaError, ValueError):
    """A prompt or an answer that gives no tokens, or a chat template that is not there."""


class JoinedIds(NamedTuple):
    """Token ids of a prompt and of the answer that follows it; both non-empty, neither padded.

    Attributes:
        prompt_ids: With the BOS token where the tokenizer adds one by default.
        target_ids: Without an end-of-sequence token.
    """

    prompt_ids: list[int]
    target_ids: list[int]


# Thai, Lao, Burmese, Khmer, CJK punctuation, kana, bopomofo, Han and full-width forms; not Hangul, which has spaces.
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f"
    "\uff01-\uff9f\U00020000-\U0003ffff"
)
# Brackets and quotation marks open, an apostrophe or a closing mark does not: " has the marks before it to tell.
_OPEN = re.compile(rf"[(\[{{\u2018\u201c\u00ab\u2039\u00bf\u00a1{_NO_SPACES}]$")


def _wants_no_space(prompt: str) -> bool:
    """Whether a word directly follows ``prompt``, which ends in no whitespace."""
    line = prompt.rpartition("\n")[2]
    return bool(_OPEN.search(prompt)) or (line.endswith('"') and line.count('"') % 2 == 1)


def separate(prompt: str, target: str) -> tuple[str, str]:
    """The texts of prompt and answer, such that their concatenation is the text a model reads.

    >>> separate("The capital of France is", "Paris")
    ('The capital of France is', ' Paris')
    >>> separate("The capital of France is ", " Paris")
    ('The capital of France is', ' Paris')
    >>> separate("法国的首都是", "巴黎")
    ('法国的首都是', '巴黎')
    >>> separate("She wrote (", "in 1997)")
    ('She wrote (', 'in 1997)')
    >>> separate("def f():\\n    ", "return 1")
    ('def f():\\n', '    return 1')

    Raises:
        TokenizationError: The target is empty or blank.
    """
    if not target.strip():
        raise TokenizationError(f"the target for the prompt {prompt!r} is empty: give the answer to train or score")
    words = prompt.rstrip(" ")
    if not words:  # a prompt of spaces alone has no word for the spaces to leave
        return prompt, target
    spaces = prompt[len(words) :]
    if not words[-1].isspace():
        if target[0].isspace():
            spaces = ""  # the target's own space and that of the prompt are the same one
        elif not spaces and not _wants_no_space(words):
            spaces = " "
    return words, spaces + target


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    chat_template: bool = False,
    conversation: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """The ids a model is given to answer ``prompt``; always the ``prompt_ids`` of :func:`join`.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The prompt's text.
        chat_template: Whether to put the prompt, as a user message with the generation prompt after it, through the
            tokenizer's chat template.
        conversation: What was said before the prompt: what the user said and what was answered, turn by turn. Without
            the template it stands before the prompt, a paragraph each.

    Raises:
        TokenizationError: No tokens come out, or the tokenizer has no chat template.
    """
    if chat_template and conversation:
        text = _render_chat(tokenizer, prompt, conversation)
    else:
        said = "".join(f"{text}\n\n" for turn in conversation for text in turn)
        text, _ = as_asked(tokenizer, said + prompt, chat_template)
    ids = encode_text(tokenizer, text, special=not chat_template)
    if not ids:
        raise TokenizationError(f"the prompt {prompt!r} gives no tokens: write a prompt the tokenizer can represent")
    return ids


def as_asked(tokenizer: PreTrainedTokenizerBase, prompt: str, chat_template: bool = False) -> tuple[str, int]:
    """The text whose tokens a model is given to answer ``prompt``, and where in it the prompt begins.

    >>> as_asked(tokenizer, "Anna Berg plays the ")  # doctest: +SKIP
    ('Anna Berg plays the', 0)

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The prompt's text.
        chat_template: As for :func:`encode_prompt`.

    Raises:
        TokenizationError: The tokenizer has no chat template, or one that writes the prompt in another way.
    """
    if not chat_template:
        return prompt.rstrip(" ") or prompt, 0
    text = _render_chat(tokenizer, prompt)
    kept = prompt.strip()  # a template may leave out what is around it
    start = text.rfind(kept)
    if start < 0:
        raise TokenizationError(f"the chat template does not write the prompt {prompt!r} as it is: ask it without")
    return text, start - (len(prompt) - len(prompt.lstrip()))


def join(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, chat_template: bool = False) -> JoinedIds:
    """Token ids of ``prompt`` and of ``target`` following it.

    Where the tokenisation of the whole text starts with the prompt's own ids, the rest is the target's. Where it does
    not, because a token of the vocabulary spans the boundary, the prompt keeps the ids it is asked with and
    the target is tokenised as it would be behind an unrelated character; the text is the same either way.

    Args:
        tokenizer: Any Hugging Face tokenizer: byte-level BPE, SentencePiece-style, ...
        prompt: The prompt's text.
        target: The answer's text, without a leading space unless it is meant.
        chat_template: Join through the tokenizer's chat template: user message, generation prompt, assistant text.

    Raises:
        TokenizationError: The target is blank, prompt or target give no tokens, or there is no chat template.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, chat_template)
    if chat_template:
        prompt_text = _render_chat(tokenizer, prompt)
        target_text = _chat_answer(tokenizer, prompt, target, prompt_text)
    else:
        prompt_text, target_text = separate(prompt, target)
    joint = encode_text(tokenizer, prompt_text + target_text, special=not chat_template)
    if joint[: len(prompt_ids)] == prompt_ids:
        target_ids = joint[len(prompt_ids) :]
    else:
        target_ids = _encode_continuation(tokenizer, target_text)
    if not target_ids:
        raise TokenizationError(f"the target {target!r} gives no tokens: write an answer the tokenizer can represent")
    return JoinedIds(prompt_ids, target_ids)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Ids of ``text``; with ``special``, what the tokenizer puts in front by default (BOS) is in front, once."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not special:
        return ids
    wrapped = list(tokenizer(text)["input_ids"])
    # What is added behind the text (an EOS with some settings) is dropped: an answer, not an end, follows a prompt.
    for start in range(len(wrapped) - len(ids) + 1):
        if wrapped[start : start + len(ids)] == ids:
            prefix = wrapped[:start]
            return ids if prefix and ids[:start] == prefix else prefix + ids
    return wrapped


def _encode_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of ``text`` in mid-text: not with the space that SentencePiece-style tokenizers put before a first word."""
    for anchor in ("\n", ".", "a"):
        before = encode_text(tokenizer, anchor, special=False)
        both = encode_text(tokenizer, anchor + text, special=False)
        if before and both[: len(before)] == before:
            return both[len(before) :]
    return encode_text(tokenizer, text, special=False)


def _render_chat(tokenizer: PreTrainedTokenizerBase, prompt: str, conversation: Sequence[tuple[str, str]] = ()) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizationError(
            "the tokenizer has no chat template: leave chat_template off, or set tokenizer.chat_template"
        )
    said = [text for turn in conversation for text in turn]
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate([*said, prompt])
    ]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def _chat_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, prompt_text: str) -> str:
    """The target as the template writes an assistant's text: some put a space before it."""
    if not target.strip():
        raise TokenizationError(f"the target for the prompt {prompt!r} is empty: give the answer to train or score")
    target = target.strip()
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False))
    if whole.startswith(prompt_text):
        before, written, _ = whole[len(prompt_text) :].partition(target)
        # Anything but whitespace before it (an empty block of thought) is not part of the answer.
        if written and not before.strip():
            return before + written
    return target
