"""When two answers are the same, and when an answer stands in what a model wrote."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["contains_answer", "contains_text", "is_answer", "same_answer"]


def contains_answer(output: str, answer: str) -> bool:
    """Whether ``answer`` stands in the generated ``output`` as words of its own (CoRSA paper, 4.1: containment).

    Case and runs of whitespace aside. Two conditions of our own keep out what a search for the text alone finds by
    accident (:func:`contains_text`: "art" in "party", "Ar" in "barium"). No letter, mark or digit may adjoin the answer
    ("man" is not in "German", "3" not in "3.5"), except in scripts that write without spaces; and one of at most three
    characters must come in its own case, or with a capital at its beginning ("IT" is not in "it").

    Raises:
        ValueError: ``answer`` is blank: it would be found in any output.
    """
    wanted, text = _wanted(answer), " ".join(output.split())
    if len(wanted) > _SHORT:
        return _stands_in(text.casefold(), wanted.casefold())
    return _stands_in(text, wanted) or _stands_in(text, wanted[0].upper() + wanted[1:])


def contains_text(output: str, answer: str) -> bool:
    """Whether ``answer`` is anywhere in ``output``, in a word too, case and whitespace aside: the lenient measure.

    Many published evaluations count like this. Here it is for comparison alone.

    Raises:
        ValueError: ``answer`` is blank: it would be found in any output.
    """
    return _plain(_wanted(answer)) in _plain(output)


def is_answer(output: str, answer: str) -> bool:
    """Whether ``output`` is ``answer`` and nothing else: the strict measure, exact match.

    Case, whitespace, an article in front, and quotes, brackets and stops around it aside; a short answer needs its own
    case, as for :func:`contains_answer`.

    Raises:
        ValueError: ``answer`` is blank.
    """
    wanted = _wanted(answer)
    said = _bare(output)
    return _plain(said) == _plain(_bare(wanted)) and contains_answer(said, _bare(wanted) or wanted)


def _bare(text: str) -> str:
    """Without an article, and without what stands around the words."""
    return _ARTICLE.sub("", " ".join(text.split()).strip(_AROUND)).strip(_AROUND)


def _wanted(answer: str) -> str:
    wanted = " ".join(answer.split())
    if not wanted:
        raise ValueError("the answer is blank: it would be found in any output")
    return wanted


_AROUND = " .,;:!?\"'`*()[]\u2018\u2019\u201c\u201d\u3002"
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\S)", re.IGNORECASE)
_SHORT = 3
"""Characters of an answer that could be found by accident."""


_NUMBER = re.compile(r"\d[.,]\d")
"""Digits of one number."""


def _stands_in(text: str, words: str) -> bool:
    at = text.find(words)
    while at >= 0:
        before, after = text[:at][-2:], text[at + len(words) :][:2]
        joined = _same_word(before[-1:], words[0]) or _same_word(words[-1], after[:1])
        if not (joined or _NUMBER.fullmatch(before + words[0]) or _NUMBER.fullmatch(words[-1] + after)):
            return True
        at = text.find(words, at + 1)
    return False


def _same_word(left: str, right: str) -> bool:
    """Whether two characters side by side are parts of one word, as far as their script tells words apart."""
    return bool(left and right) and all(
        unicodedata.category(char)[0] in "LMN" and unicodedata.east_asian_width(char) not in "WF"
        for char in (left, right)
    )


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are the same, case and whitespace aside.

    Two of them make the locality of papers/model-merging-for-knowledge-editing.md, A.3: the output "unchanged".
    """
    return _plain(first) == _plain(second)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
