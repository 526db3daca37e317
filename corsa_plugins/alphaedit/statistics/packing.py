"""Documents as rows of token ids, and where in the text a stream of rows is, so that it can be taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import CorsaError
from corsa_plugins.model.tokenization import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Position", "ResumeError", "TokenRows"]


class ResumeError(CorsaError, ValueError):
    """A collection that cannot be taken up again, because something is not as it was; the message names it."""


@dataclass(frozen=True)
class Position:
    """How far a text has been read.

    Attributes:
        n_texts: Documents taken from it.
        digest: Of these documents.
        pending: Tokens of them that are in no row yet.
    """

    n_texts: int = 0
    digest: str = ""
    pending: tuple[int, ...] = ()


class TokenRows:
    """Rows of token ids, none longer than ``length``, none padded.

    Every row begins with what the tokenizer puts before a text by default (BOS).

    * packed: documents one after the other, each followed by the end-of-sequence token if the tokenizer has one, cut
      into rows of ``length``; only the last row is shorter. A document sees those before it in its row.
    * not packed: a row for every document, or several for one that is longer than ``length``.

    Args:
        texts: The documents; read once, from the start.
        tokenizer: The model's.
        length: Most tokens in a row.
        pack: Which of the two.
    """

    def __init__(
        self, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, pack: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.pack = pack
        self.prefix = _prefix(tokenizer)
        self._texts = iter(texts)
        self._n_texts = 0
        self._hash = hashlib.sha256()
        self._pending: list[int] = []

    @property
    def position(self) -> Position:
        """Where the rows given so far end."""
        return Position(self._n_texts, self._hash.hexdigest() if self._n_texts else "", tuple(self._pending))

    def skip_to(self, position: Position) -> None:
        """Read past what has been read before.

        Raises:
            ResumeError: The documents are not those that were read.
        """
        while self._n_texts < position.n_texts:
            if self._next() is None:
                raise ResumeError(
                    f"the text has {self._n_texts} documents, and {position.n_texts} of it were read before: "
                    "give the same text, or start afresh"
                )
        if self.position.digest != position.digest:
            raise ResumeError(
                f"the text is another one: its first {position.n_texts} documents are not those that were read before; "
                "give the same text, or start afresh"
            )
        self._pending = list(position.pending)

    def __iter__(self) -> Iterator[list[int]]:
        room = self.length - len(self.prefix)
        while True:
            enough = room if self.pack else 1
            while len(self._pending) < enough:
                text = self._next()
                if text is None:
                    break
                self._pending += self._encode(text)
            row, self._pending = self._pending[:room], self._pending[room:]
            if not row:
                return
            yield [*self.prefix, *row]

    def _next(self) -> str | None:
        text = next(self._texts, None)
        if text is None:
            return None
        if not isinstance(text, str):
            raise CorsaError(f"document {self._n_texts + 1} is a {type(text).__name__}: texts are strings")
        content = text.encode("utf-8", errors="surrogatepass")
        self._hash.update(len(content).to_bytes(8, "little") + content)
        self._n_texts += 1
        return text

    def _encode(self, text: str) -> list[int]:
        if not text.strip():
            return []
        encoded: Any = self.tokenizer(text, add_special_tokens=False, verbose=False)
        end = [self.tokenizer.eos_token_id] if self.pack and self.tokenizer.eos_token_id is not None else []
        return [*encoded["input_ids"], *end]


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    alone: Any = tokenizer("a", add_special_tokens=False)
    whole = encode_prompt(tokenizer, "a")
    return whole[: len(whole) - len(alone["input_ids"])]
