"""What a model is asked about requests and facts, each question once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from corsa_plugins.data.requests import EditRequest, Probe, RequestError, quoted
from corsa_plugins.model.limits import longest_text
from corsa_plugins.model.tokenization import TokenizationError, encode_prompt, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Prompts", "answer_length", "as_probe", "check_lengths"]

ROOM = 16
"""Tokens that an answer may have beyond the longest one to be found."""


class Prompts:
    """Prompts to generate from and (prompt, target) pairs to score, each once, in order."""

    def __init__(self, items: Sequence[EditRequest | Probe]) -> None:
        self.prompts: dict[str, None] = {}
        self.pairs: dict[tuple[str, str], None] = {}
        self.aliases: set[str] = set()  # looked for in outputs, never scored
        for item in items:
            if isinstance(item, Probe):
                self._probe(item)
                continue
            for prompt in (item.prompt, *item.paraphrases):
                self._add(prompt, [item.target_new, *([item.target_old] if item.target_old else [])])
            for probe in item.portability:
                self._probe(probe)
            for probe in item.neighborhood:
                self._probe(probe, item.target_new)

    def _probe(self, probe: Probe, target_new: str | None = None) -> None:
        self._add(probe.prompt, [answer for answer in (probe.answer, target_new) if answer and probe.answer])
        self.aliases.update(probe.aliases)

    def _add(self, prompt: str, targets: Iterable[str]) -> None:
        self.prompts[prompt] = None
        self.pairs.update({(prompt, target): None for target in targets})

    def __len__(self) -> int:
        return len(self.prompts) + len(self.pairs)


def answer_length(tokenizer: PreTrainedTokenizerBase, items: Sequence[EditRequest | Probe]) -> int:
    """How many tokens answers have by default: those of the longest one to be found, aliases included, plus 16."""
    prompts = Prompts(items)
    targets = {target for _, target in prompts.pairs} | prompts.aliases
    longest = max((len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in targets), default=0)
    return longest + ROOM


def check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, chat_template: bool
) -> None:
    """Refuse what is longer than the model reads: it would fail, or its answers would mean nothing.

    Raises:
        RequestError: Naming the prompts.
    """
    limit = longest_text(model)
    if limit is None:
        return
    problems = []
    for prompt, target in [*prompts.pairs, *((prompt, "") for prompt in prompts.prompts)]:
        if not chat_template and len(f"{prompt} {target}".encode()) < limit:
            continue  # no tokenizer makes more tokens than there are bytes, and one for the beginning
        try:
            parts = join(tokenizer, prompt, target, chat_template) if target else None
        except TokenizationError:
            continue  # said where it is asked
        length = sum(map(len, parts)) if parts else len(encode_prompt(tokenizer, prompt, chat_template))
        if length > limit:
            problems.append(f"the prompt {quoted(prompt)}: {length} tokens, and the model reads {limit}: shorten it")
    if problems:
        problems = list(dict.fromkeys(problems))
        raise RequestError(problems, f"{len(problems)} prompts are too long")


def as_probe(fact: Probe | EditRequest) -> Probe:
    """A fact with its right answer; of a request, its prompt and ``target_new``."""
    return Probe(prompt=fact.prompt, answer=fact.target_new) if isinstance(fact, EditRequest) else fact
