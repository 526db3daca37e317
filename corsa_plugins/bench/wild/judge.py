"""A judge of free answers: a model, or a command of the user's own; and how far it agrees with labels made by hand.

A judge that is not measured is another mirage: :func:`agreement` says how often it calls right what a person called
right, and how much of that is more than chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from corsa_plugins.bench.wild.answers import WildAnswer
from corsa_plugins.data.answers import contains_answer, is_answer
from corsa_plugins.errors import CorsaError
from corsa_plugins.journal import Journal
from corsa_plugins.model.asking import score_targets
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Agreement", "CommandJudge", "Item", "JudgeError", "Labelled", "ModelJudge", "WildJudge", "agreement",
    "judge_answers", "read_labels",
]  # fmt: skip

_AT_ONCE = 256
_WORDS = {"yes": True, "true": True, "1": True, "right": True, "no": False, "false": False, "0": False, "wrong": False}
_ASK = (
    "Question: {prompt}\nRight answer: {right}\nAnswer given: {output}\n\n"
    "Does the answer given mean the same as the right answer? Answer yes or no."
)


class JudgeError(CorsaError, ValueError):
    """A judge that did not judge, or labels that cannot be read."""


@dataclass(frozen=True)
class Item:
    """What is judged.

    Attributes:
        prompt: What was asked.
        right: A right answer.
        output: What was answered.
    """

    prompt: str
    right: str
    output: str


@dataclass(frozen=True)
class Labelled:
    """An item, and whether a person called it right."""

    item: Item
    label: bool


class WildJudge(Protocol):
    """Says which answers are right."""

    @property
    def key(self) -> str:
        """Tells it from other judges."""

    def __call__(self, items: Sequence[Item]) -> list[bool]:
        """Whether each is right, in order."""


@dataclass(frozen=True)
class CommandJudge:
    """A command that reads items as JSON Lines (``prompt``, ``right``, ``output``) and writes a line for each.

    A line begins with yes, no, true, false, 1 or 0, or is an object with ``right``. The command is split as a shell
    does, and run without one.

    Attributes:
        command: As it is called.
        timeout: Seconds for each call, of up to 256 items.
    """

    command: str
    timeout: float = 600.0

    @property
    def key(self) -> str:
        """The command."""
        return f"command {self.command}"

    def __call__(self, items: Sequence[Item]) -> list[bool]:
        """As :class:`WildJudge`.

        Raises:
            JudgeError: The command cannot be run, fails, takes too long, or writes something else.
        """
        lines = "".join(json.dumps(vars(item), ensure_ascii=False) + "\n" for item in items)
        try:
            done = subprocess.run(
                shlex.split(self.command), input=lines, capture_output=True, text=True, encoding="utf-8",
                timeout=self.timeout, check=False,
            )  # fmt: skip
        except (OSError, ValueError, IndexError) as error:
            raise JudgeError(f"--judge {self.command}: it cannot be run ({error})") from error
        except subprocess.TimeoutExpired:
            raise JudgeError(
                f"--judge {self.command}: no verdicts on {len(items)} answers in {self.timeout:g} s"
            ) from None
        if done.returncode:
            raise JudgeError(f"--judge {self.command}: it failed ({done.returncode}): {done.stderr.strip()[-500:]}")
        said = [line for line in done.stdout.splitlines() if line.strip()]
        if len(said) != len(items):
            raise JudgeError(
                f"--judge {self.command}: {len(said)} verdicts on {len(items)} answers: write a line for each"
            )
        return [self._verdict(line) for line in said]

    def _verdict(self, line: str) -> bool:
        try:
            data = json_value(line)
            verdict = data["right"] if isinstance(data, dict) else None
            if isinstance(verdict, bool):
                return verdict
        except (ValueError, KeyError):
            pass
        word = line.split()[0].strip(".,;:!\"'").lower()
        if word not in _WORDS:
            raise JudgeError(f'--judge {self.command}: {line!r} is no verdict: write yes or no, or {{"right": true}}')
        return _WORDS[word]


@dataclass(frozen=True)
class ModelJudge:
    """A model that is asked whether answers mean the right one: "yes" must be likelier than "no".

    Attributes:
        model: A causal language model.
        tokenizer: Its tokenizer; its chat template is used where it has one.
        name: What the model is called.
        batch_size: Sequences per forward pass.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    batch_size: int = 16

    @property
    def key(self) -> str:
        """The model's name."""
        return f"model {self.name}"

    def __call__(self, items: Sequence[Item]) -> list[bool]:
        """As :class:`WildJudge`."""
        chat = bool(getattr(self.tokenizer, "chat_template", None))
        prompts = [_ASK.format(**vars(item)) for item in items]
        pairs = [(prompt, word) for prompt in prompts for word in (("Yes", "No") if chat else ("yes", "no"))]
        scores = score_targets(self.model, self.tokenizer, pairs, batch_size=self.batch_size, chat_template=chat)
        return [yes.log_prob > no.log_prob for yes, no in zip(scores[::2], scores[1::2], strict=True)]


@dataclass(frozen=True)
class Agreement:
    """How far verdicts are those of a person.

    Attributes:
        count: Labels.
        share: Of them that agree, in [0, 1].
        kappa: Cohen's: 1 all of them, 0 no more than by chance; ``None`` where all labels and verdicts are one.
        too_kind: Called right, and labelled wrong.
        too_strict: Called wrong, and labelled right.
    """

    count: int
    share: float
    kappa: float | None
    too_kind: int
    too_strict: int

    @classmethod
    def of(cls, verdicts: Sequence[bool], labels: Sequence[bool]) -> Agreement:
        """Of verdicts on what has labels; at least one."""
        count, pairs = len(labels), list(zip(verdicts, labels, strict=True))
        share = sum(verdict == label for verdict, label in pairs) / count
        yes, right = sum(verdicts) / count, sum(labels) / count
        chance = yes * right + (1 - yes) * (1 - right)
        kappa = None if chance == 1 else (share - chance) / (1 - chance)
        kind = sum(verdict and not label for verdict, label in pairs)
        return cls(count, share, kappa, kind, sum(label and not verdict for verdict, label in pairs))


def read_labels(path: str | os.PathLike[str]) -> list[Labelled]:
    """Labels made by hand, JSON Lines: ``prompt``, ``right`` (the right answer), ``output``, and ``label``, a boolean.

    Raises:
        JudgeError: There is no such file, or a line is something else.
    """
    labels = []
    try:
        lines = user_path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"--judge-labels {os.fspath(path)}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: Any = json_value(line)
            texts = [row[name] for name in ("prompt", "right", "output")]
            if not all(isinstance(text, str) for text in texts) or not isinstance(row["label"], bool):
                raise TypeError("prompt, right and output are texts, label is true or false")
        except (ValueError, KeyError, TypeError) as error:
            raise JudgeError(f"{os.fspath(path)}, line {number}: no label ({error!r})") from None
        labels.append(Labelled(Item(*texts), row["label"]))
    if not labels:
        raise JudgeError(f"{os.fspath(path)}: there are no labels in it")
    return labels


def agreement(judge: WildJudge, labels: Sequence[Labelled]) -> dict[str, Agreement]:
    """How far a judge, and the measures without one, agree with a person: by ``"judged"``, ``"words"``, ``"exact"``."""
    items, by_hand = [one.item for one in labels], [one.label for one in labels]
    return {
        "judged": Agreement.of(judge(items), by_hand),
        "words": Agreement.of([contains_answer(item.output, item.right) for item in items], by_hand),
        "exact": Agreement.of([is_answer(item.output, item.right) for item in items], by_hand),
    }


def judge_answers(judge: WildJudge, answers: Sequence[WildAnswer], path: str | os.PathLike[str]) -> list[bool]:
    """What a judge says of answers, in order; of a denied question the opposite of what it says of its answer.

    What has no word in it answers no question, and so denies nothing.

    Args:
        judge: Any.
        answers: Any number.
        path: A journal of verdicts: what is in it is not judged again.

    Raises:
        JudgeError: As the judge raises it.
    """
    items = [Item(answer.prompt, answer.right[0], answer.output) for answer in answers]
    with Journal(path, {"verdicts of": judge.key}) as journal:
        known = {key: verdict for chunk in journal.items for key, verdict in chunk.items()}
        new = list({_key(item): item for item in items if _key(item) not in known}.items())
        for start in range(0, len(new), _AT_ONCE):
            chunk = new[start : start + _AT_ONCE]
            verdicts = dict(zip((key for key, _ in chunk), judge([item for _, item in chunk]), strict=True))
            journal.append(verdicts)
            known |= verdicts
    return [
        known[_key(item)] is not answer.denied and not (answer.denied and answer.silent)
        for item, answer in zip(items, answers, strict=True)
    ]


def _key(item: Item) -> str:
    return hashlib.sha256(json.dumps([item.prompt, item.right, item.output]).encode()).hexdigest()[:24]
