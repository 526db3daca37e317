"""Prompts like given ones about other subjects, which the model lists by itself: what an edit should leave alone.

Of facts that are not edited, those nearest to the edited ones are told in the same words of another subject. They are
what an edit spoils first, and nobody has to give them: a model goes on with a list of subjects.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from corsa_plugins.errors import SettingError
from corsa_plugins.model.sampling import sample_continuations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LikePrompt", "like_prompts", "list_others", "template_of"]

_LISTS, _SHOWN, _WRITTEN = 6, 8, 40
"""How often a group is listed, of how many subjects, and how many tokens are written behind."""
_LONGEST, _MORE_WORDS = 40, 1
"""Characters of a subject, and how many words more than the given ones it may have: what is longer is no name."""


class LikePrompt(NamedTuple):
    """A prompt in the words of another, about another subject.

    Attributes:
        prompt: What is asked.
        subject: What it is about.
    """

    prompt: str
    subject: str


def template_of(prompt: str, subject: str) -> str | None:
    """The prompt with ``{}`` for its last mention of the subject; ``None`` where it has none, or braces of its own."""
    before, found, after = prompt.rpartition(subject)
    if not (subject and found) or set("{}") & set(before + after):
        return None
    return f"{before}{{}}{after}"


def like_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[tuple[str, str]],
    n: int = 10,
    *,
    avoid: Iterable[str] = (),
    seed: int = 0,
) -> list[LikePrompt]:
    """Prompts in the words of the given ones about subjects that the model lists when it is shown theirs.

    Args:
        model: A causal language model. It is run, and left as it is.
        tokenizer: Its tokenizer.
        prompts: (prompt, subject) of what is edited; those of the same words are one form.
        n: The most for each form.
        avoid: Further subjects that are not to occur.
        seed: Of what is drawn.

    Returns:
        Form by form, in the order of the forms. A model that lists nothing, one that knows no commas, say, gives none.

    Raises:
        SettingError: ``n`` is not positive.
    """
    forms: dict[str, list[str]] = {}
    for prompt, subject in prompts:
        template = template_of(prompt, subject)
        if template is not None and subject not in forms.setdefault(template, []):
            forms[template].append(subject)
    others = list_others(model, tokenizer, forms, n, avoid=avoid, seed=seed)
    return [LikePrompt(form.format(other), other) for form in forms for other in others[form]]


def list_others(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Mapping[str, Sequence[str]],
    n: int = 10,
    *,
    avoid: Iterable[str] = (),
    seed: int = 0,
) -> dict[str, list[str]]:
    """Subjects of the kind of given ones: what the model goes on with behind a list of them, sampled by ``seed``.

    Args:
        model: As for :func:`like_prompts`.
        tokenizer: Likewise.
        groups: Subjects of one kind, by a name; the model sees up to eight of them at a time, in several orders.
        n: The most for each group; those listed most often come first.
        avoid: What is not to be among them, beside all the subjects of all groups.
        seed: Of the orders and of the sampling.

    Returns:
        By the names of the groups; fewer than ``n`` where the model repeats itself.

    Raises:
        SettingError: ``n`` is not positive.
    """
    if n < 1:
        raise SettingError(f"n is {n}: it must be at least 1")
    known = {_key(subject) for subjects in (*groups.values(), avoid) for subject in subjects}
    draw = random.Random(seed)
    asked: list[str] = []
    lists: list[str] = []
    for name, subjects in groups.items():
        for _ in range(_LISTS if subjects else 0):
            shown = draw.sample(list(subjects), min(_SHOWN, len(subjects)))
            asked.append(name)
            lists.append(", ".join(shown) + ",")
    counts: dict[str, dict[str, int]] = {name: {} for name in groups}
    words = {name: _MORE_WORDS + max((len(each.split()) for each in groups[name]), default=0) for name in groups}
    for name, text in zip(asked, _go_on(model, tokenizer, lists, seed), strict=True):
        for item in text.split("\n")[0].split(",")[:-1]:
            subject = " ".join(item.split()).removeprefix("and ")
            if len(subject.split()) > words[name] or _key(subject) in known or set(subject) & set("{}"):
                continue
            if 1 < len(subject) <= _LONGEST:
                counts[name][subject] = counts[name].get(subject, 0) + 1
    return {name: sorted(each, key=each.__getitem__, reverse=True)[:n] for name, each in counts.items()}


def _key(subject: str) -> str:
    return " ".join(subject.casefold().split())


def _go_on(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], seed: int) -> list[str]:
    """What the model writes behind texts, sampled."""
    rows = [list(tokenizer(text)["input_ids"]) for text in texts]
    if not all(rows) or not rows:
        return [""] * len(rows)
    written = sample_continuations(model, rows, _WRITTEN, temperature=0.8, top_p=0.95, seed=seed)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in written]
