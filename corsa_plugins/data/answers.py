"""When two answers are the same, and when an answer stands in what a model wrote."""

from __future__ import annotations

import unicodedata

__all__ = ["contains_alias", "contains_answer", "same_answer"]


def contains_answer(output: str, answer: str) -> bool:
    """Whether ``answer`` occurs in the generated ``output``, case and whitespace aside (CoRSA paper, 4.1).

    1 if the answer, case-folded and with every run of whitespace as one space, is a part of the output in the same
    form, else 0. A plain search for the text: "art" is found in "party". The top-1 form, which has no such accidents,
    is reported beside it.

    Raises:
        ValueError: ``answer`` is blank: it would be found in any output.
    """
    wanted = _plain(answer)
    if not wanted:
        raise ValueError("the answer is blank: it would be found in any output")
    return wanted in _plain(output)


def contains_alias(output: str, alias: str) -> bool:
    """Whether another right answer, ``alias``, stands in the generated ``output`` as words of its own.

    Data sets with aliases count any of them (RippleEdits: Cohen et al., 2024; MQuAKE: Zhong et al., 2023). As
    :func:`contains_answer`, with two conditions of our own: some questions have dozens of aliases, many of two or three
    letters, which a search for the text alone would find by accident. No letter, mark or digit may adjoin it ("man" is
    not in "German"), except in scripts that write without spaces; and one of at most three characters must come in its
    own case, or with a capital at its beginning ("IT" is not in "it").

    Raises:
        ValueError: ``alias`` is blank: it would be found in any output.
    """
    wanted, text = " ".join(alias.split()), " ".join(output.split())
    if not wanted:
        raise ValueError("the alias is blank: it would be found in any output")
    if len(wanted) > _SHORT_ALIAS:
        return _stands_in(text.casefold(), wanted.casefold())
    return _stands_in(text, wanted) or _stands_in(text, wanted[0].upper() + wanted[1:])


_SHORT_ALIAS = 3


def _stands_in(text: str, words: str) -> bool:
    at = text.find(words)
    while at >= 0:
        before, after = text[:at][-1:], text[at + len(words) :][:1]
        if not _same_word(before, words[0]) and not _same_word(words[-1], after):
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
