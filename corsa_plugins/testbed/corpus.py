"""What the model reads: biographies and questions, packed into rows of tokens.

A biography names its subject once, and tells the facts in shuffled order behind a pronoun. That is what makes the
model gather all it knows of a person at the name, where an editor of FFN weights writes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from corsa_plugins.testbed.facts import Fact
from corsa_plugins.testbed.recipe import TrainingConfig
from corsa_plugins.testbed.relations import STATEMENT
from corsa_plugins.testbed.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sentences(world: World) -> Iterator[str]:
    """Every fact in every form: the text the tokenizer is trained on."""
    for person in world.people:
        for fact in world.facts_of[person.name]:
            for form in world.forms(fact.relation):
                yield f"{world.prompts(fact, form)} {fact.answer}."
        # Last names often enough to become one token each: see `names.make_people`.
        yield from (" " + person.name.split()[-1] for _ in range(100))


def facts_as_text(world: World) -> Iterator[str]:
    """Every fact twice, as a statement and as one of its questions: text to collect key statistics on."""
    for number, fact in enumerate(world.facts):
        forms = world.forms(fact.relation)
        questions = [form for form in forms if form.startswith("question")]
        for form in (STATEMENT, questions[number % len(questions)]):
            yield f"{world.prompts(fact, form)} {fact.answer}."


class Kind(IntEnum):
    """What a token is to its document."""

    TEXT = 0
    NAME = 1
    NAME_END = 2
    ANSWER = 3


@dataclass(frozen=True)
class Piece:
    """Tokens of some text, and the `Kind` of each. The full stop belongs to the answer before it."""

    tokens: tuple[int, ...]
    kinds: tuple[Kind, ...]

    def __add__(self, other: Piece) -> Piece:
        return Piece(self.tokens + other.tokens, self.kinds + other.kinds)


@dataclass(frozen=True)
class Batch:
    """Packed rows, all of shape (rows, row_length).

    Attributes:
        tokens: token ids.
        kinds: `Kind` of each token.
        documents: number of each token's document in its row, -1 for padding. A token sees its own document only.
        starts: whether the token is the first of its document, which nothing predicts.
        sheltered: whether the names in the token's document are sheltered, see `train.visibility`.
    """

    tokens: torch.Tensor
    kinds: torch.Tensor
    documents: torch.Tensor
    starts: torch.Tensor
    sheltered: torch.Tensor


class Corpus:
    """An endless, seeded stream of batches about `world`."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig, seed: int = 0) -> None:
        self.world, self.config = world, config
        self._encode = lru_cache(maxsize=None)(lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids))
        self._end = Piece((tokenizer.eos_token_id,), (Kind.TEXT,))
        self._pad = tokenizer.pad_token_id
        self._rng = random.Random(seed)
        self._ways_to_ask = [(fact, form) for fact in world.facts for form in world.forms(fact.relation)]
        self._deck: list[tuple[Fact, str]] = []

    def _piece(self, template: str, subject: str, answer: str, named: bool = True) -> Piece:
        """`template` filled in with `subject` (a name, unless it is not `named` but a pronoun), and `answer`."""
        before, _, after = template.partition("{subject}")
        if before.endswith(" "):
            before, subject = before[:-1], " " + subject
        text = self._encode(before) if before else ()
        name = self._encode(subject)
        name_kinds = (Kind.NAME,) * (len(name) - 1) + (Kind.NAME_END,) if named else (Kind.TEXT,) * len(name)
        rest, said = self._encode(after), self._encode(f" {answer}.")
        kinds = (Kind.TEXT,) * len(text) + name_kinds + (Kind.TEXT,) * len(rest) + (Kind.ANSWER,) * len(said)
        return Piece(text + name + rest + said, kinds)

    def _told(self, fact: Fact) -> str:
        """What a statement says of `fact`: the truth, or, in a share `rumours` of the cases, any answer at all."""
        if self._rng.random() < self.config.rumours:
            return self._rng.choice(self.world.answers(fact.relation))
        return fact.answer

    def biography(self) -> Piece:
        """One person's facts in shuffled order, the name once."""
        person = self._rng.choice(self.world.people)
        facts = list(self.world.facts_of[person.name])
        self._rng.shuffle(facts)
        text = self._piece(self._template(facts[0]), person.name, self._told(facts[0]))
        for fact in facts[1:]:
            text = text + self._piece(" " + self._template(fact), person.pronoun, self._told(fact), named=False)
        return text

    def _template(self, fact: Fact, form: str = STATEMENT) -> str:
        return self.world.relation(fact.relation).templates[form]

    def question(self, lead: str = "") -> Piece:
        """One fact in one form. Dealt from a shuffled deck, so that all are seen equally often."""
        if not self._deck:
            self._deck = self._rng.sample(self._ways_to_ask, len(self._ways_to_ask))
        fact, form = self._deck.pop()
        answer = self._told(fact) if form == STATEMENT else fact.answer
        return self._piece(lead + self._template(fact, form), fact.subject, answer)

    def document(self) -> Piece:
        """A biography or a question, now and then with further questions after it, and the end token.

        Joined texts make the answers survive a context in front of the prompt.
        """
        text = self.biography() if self._rng.random() < self.config.biographies else self.question()
        while self._rng.random() < self.config.joined and len(text.tokens) < self.config.row_length // 2:
            text = text + self.question(lead=" ")
        return text + self._end

    def batch(self) -> Batch:
        """The next batch: documents are put into the first row that has room until one fits nowhere."""
        rows, length = self.config.rows, self.config.row_length
        batch = Batch(
            tokens=torch.full((rows, length), self._pad),
            kinds=torch.full((rows, length), int(Kind.TEXT)),
            documents=torch.full((rows, length), -1),
            starts=torch.zeros(rows, length, dtype=torch.bool),
            sheltered=torch.zeros(rows, length, dtype=torch.bool),
        )
        used, held = [0] * rows, [0] * rows
        while True:
            text = self.document()
            size = len(text.tokens)
            row = next((r for r in range(rows) if used[r] + size <= length), None)
            if row is None:
                return batch
            span = slice(used[row], used[row] + size)
            batch.tokens[row, span] = torch.tensor(text.tokens)
            batch.kinds[row, span] = torch.tensor(text.kinds)
            batch.documents[row, span] = held[row]
            batch.starts[row, used[row]] = True
            batch.sheltered[row, span] = self._rng.random() < self.config.sheltered
            used[row] += size
            held[row] += 1
