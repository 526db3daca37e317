"""What a model says to prompts, each asked once: kept beside what is made of it, so that another seed asks nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from corsa_plugins.files import sha256_of_file
from corsa_plugins.journal import Journal
from corsa_plugins.model.asking import generate_answers
from corsa_plugins.model.gguf import find_gguf
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answers", "Question", "identity_of"]

_AT_ONCE = 512
"""Prompts between two savings."""


class Question(NamedTuple):
    """A prompt, and how it is put.

    Attributes:
        prompt: What is asked.
        chat: Whether it goes through the chat template.
    """

    prompt: str
    chat: bool


class Answers:
    """Greedy answers of a model, remembered in a journal; a context manager.

    Args:
        path: The journal.
        source: What the answers are of, as :func:`identity_of` gives it.
        load: Gives the model and its tokenizer; called when something is asked that is not known yet.
        batch_size: Prompts per forward pass.
        progress: Show a progress bar.

    Raises:
        OtherWorkError: The journal is of another model or precision.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        source: dict[str, str],
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> None:
        self._journal = Journal(path, {"answers of": source})
        self._load = load
        self._loaded: tuple[Any, Any] | None = None
        self._batch_size, self._progress = batch_size, progress
        self._known: dict[tuple[str, bool, int], str] = {}
        for item in self._journal.items:
            self._remember(**item)

    def ask(self, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
        """The texts that the model writes behind prompts, in their order.

        Args:
            questions: Any number; what was asked before is not asked again.
            max_new_tokens: Length of the answers.
        """
        for chat in (False, True):
            prompts = list(dict.fromkeys(question.prompt for question in questions if question.chat == chat))
            new = [prompt for prompt in prompts if (prompt, chat, max_new_tokens) not in self._known]
            new.sort(key=len)  # what is asked together is of similar length, also across savings
            for start in range(0, len(new), _AT_ONCE):
                self._ask(new[start : start + _AT_ONCE], chat, max_new_tokens)
        return [self._known[question.prompt, question.chat, max_new_tokens] for question in questions]

    def _ask(self, prompts: Sequence[str], chat: bool, max_new_tokens: int) -> None:
        model, tokenizer = self.model()
        generations = generate_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=self._batch_size,
            chat_template=chat,
            progress=self._progress,
        )
        texts = {prompt: generation.text for prompt, generation in zip(prompts, generations, strict=True)}
        self._journal.append({"chat": chat, "max_new_tokens": max_new_tokens, "texts": texts})
        self._remember(chat, max_new_tokens, texts)

    def _remember(self, chat: bool, max_new_tokens: int, texts: dict[str, str]) -> None:
        self._known |= {(prompt, chat, max_new_tokens): text for prompt, text in texts.items()}

    def model(self) -> tuple[Any, Any]:
        """The model and its tokenizer, loaded once."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.close()


def identity_of(model: str | os.PathLike[str]) -> dict[str, str]:
    """Which model it is, without loading it: of a file its digest, of a folder its configuration and weights' sizes.

    A name on the Hub stands for itself.
    """
    gguf = find_gguf(model)
    if gguf is not None:
        return {"model": sha256_of_file(gguf)}
    folder = user_path(model)
    if not folder.is_dir():
        return {"model": os.fspath(model)}
    content = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json":
            content.update(f"{file.name} {sha256_of_file(file)}\n".encode())
        elif file.is_file() and file.suffix in (".safetensors", ".bin"):
            content.update(f"{file.name} {file.stat().st_size} {_sample(file)}\n".encode())
    return {"model": content.hexdigest()}


def _sample(file: Path) -> str:
    """Digest of a file's two ends and its middle: another training changes all of them."""
    size, part = file.stat().st_size, 2**16
    content = hashlib.sha256()
    with file.open("rb") as stream:
        for start in (0, max(0, size // 2), max(0, size - part)):
            stream.seek(start)
            content.update(stream.read(part))
    return content.hexdigest()
