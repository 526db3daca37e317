"""An atlas as files: a model, facts that it knows as edits to make, and facts to watch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from corsa_plugins.atlas.answers import Answers, identity_of
from corsa_plugins.atlas.facts import ABOUT, Fact, read_facts
from corsa_plugins.atlas.knowledge import Knowledge, Known, find_known
from corsa_plugins.atlas.rounds import Draw, plan_rounds
from corsa_plugins.atlas.sources import SOURCES, missing_packages
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import DamagedError, MissingExtraError, SettingError
from corsa_plugins.files import atomic_write_text, sole_use
from corsa_plugins.journal import OtherWorkError
from corsa_plugins.manifest import checksums, versions
from corsa_plugins.model.loading import PRECISIONS, load_model
from corsa_plugins.model.placement import Placement, Where
from corsa_plugins.model.precision import computes_in_bfloat16
from corsa_plugins.model.stored import save_model
from corsa_plugins.outputs import new_directory
from corsa_plugins.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["KNOWN", "MODEL", "Asking", "Atlas", "facts_of_file", "facts_of_packages", "make_atlas"]

MODEL = "model"
"""The folder of the model, within that of all files."""

KNOWN = "known.jsonl"
"""What the model knows; read again by :func:`corsa_plugins.atlas.read_facts`."""

_ASKED = "asked.jsonl"


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    Attributes:
        wanted: As for :func:`~corsa_plugins.atlas.knowledge.find_known`.
        least: Likewise.
        device: As for :func:`~corsa_plugins.model.loading.load_model`.
        dtype: Precision to ask in: ``"auto"`` is bfloat16 where the processor computes in it, else the model's own.
        batch_size: Prompts per forward pass.
        progress: Show progress bars.

    Raises:
        SettingError: No such precision.
    """

    wanted: int = 400
    least: int = 10
    device: Where = None
    dtype: str = "auto"
    batch_size: int = 64
    progress: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS:
            raise SettingError(f"dtype is {self.dtype!r}: choose one of {', '.join(PRECISIONS)}")

    @property
    def precision(self) -> str:
        """The precision that is meant; ``"auto"`` for the model's own."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if computes_in_bfloat16(self.device if isinstance(self.device, str) else None) else "auto"


@dataclass(frozen=True)
class Atlas:
    """What was written.

    Attributes:
        files: Names of what is in the folder now, those of requests without their suffix.
        knowledge: What the model knows.
    """

    files: list[str]
    knowledge: Knowledge


def make_atlas(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    facts: Sequence[Fact] | None = None,
    draw: Draw | None = None,
    asking: Asking | None = None,
    copy: bool = True,
) -> Atlas:
    """Ask a model for facts, and write those it knows as rounds of edits and facts to watch.

    What was asked is kept in ``folder``: another seed, other rounds, or more facts ask only what is new.

    >>> make_atlas("SmolLM2-135M-Instruct.Q4_1.gguf", "real", draw=Draw(rounds=2, size=60))  # doctest: +SKIP

    Args:
        model: As for :func:`~corsa_plugins.model.loading.load_model`.
        folder: Made if it is not there. It gets ``model`` (an ordinary Hugging Face folder), ``round_1.jsonl``, ...
            (edit requests), ``untouched.jsonl``, ``same_subject.jsonl``, ``known.jsonl`` (all that is known, and in
            which forms), ``asked.jsonl`` (what the model answered) and ``atlas.json`` (how many
            are known, and what it was made by and of).
        facts: What to ask; by default those of the installed packages.
        draw: Rounds, their size, the seed.
        asking: How many facts are wanted, and how the model is run.
        copy: Whether to write the model out, as it is loaded. One that is already in ``folder`` is left as it is.

    Raises:
        IgnoranceError: The model knows too little.
        SettingError: There are fewer facts than the rounds need; or ``folder`` is that of another model.
        MissingExtraError: No facts are given, and no package with facts is installed.
        LoadingError: As for :func:`~corsa_plugins.model.loading.load_model`.
        DamagedError: What an earlier call noted in ``folder`` is not what was written.
        OSError: A file cannot be written.
    """
    target, draw, asking = Path(folder), draw or Draw(), asking or Asking()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder for the atlas")
    facts = facts_of_packages() if facts is None else facts
    with sole_use(target):
        knowledge = _ask(model, target, facts, asking, copy)
        plan = plan_rounds([known.fact for known in knowledge.known], draw)
        files = {f"round_{number}": requests for number, requests in enumerate(plan.rounds, start=1)}
        files |= {"untouched": plan.untouched, "same_subject": plan.same_subject}
        _write_known(target, knowledge, _identity(model, asking), draw, asking)
        _write_requests(target, files)
    there = [name for name, requests in files.items() if requests]
    return Atlas([*([MODEL] if copy else []), *there, KNOWN], knowledge)


def _ask(model: str | os.PathLike[str], target: Path, facts: Sequence[Fact], asking: Asking, copy: bool) -> Knowledge:
    """What the model knows of ``facts``; it is loaded only to be asked what it was not asked before, or written out."""
    folder = target / MODEL
    if (folder / "config.json").is_file() and not (target / _ASKED).exists():
        raise SettingError(f"{folder} is not of an atlas: name another folder, or remove it")

    def load() -> tuple[Any, PreTrainedTokenizerBase]:
        written = (folder / "config.json").is_file()
        loaded, tokenizer = load_model(folder if written else model, device=asking.device)
        if copy and not written:
            with new_directory(folder) as partial:
                save_model(loaded, tokenizer, partial)
        if precision != "auto" and isinstance(asking.device, Placement):  # weights on disk cannot be converted there
            return load_model(folder if copy or written else model, device=asking.device, dtype=precision)
        return (loaded if precision == "auto" else loaded.to(getattr(torch, precision))), tokenizer

    precision = asking.precision
    try:
        answers = Answers(
            target / _ASKED,
            _identity(model, asking),
            load,
            batch_size=asking.batch_size,
            progress=asking.progress,
        )
    except OtherWorkError as error:
        raise SettingError(
            f"{target} holds the atlas of another model (other {', '.join(error.differing)}): name another folder"
        ) from error
    with answers:
        if copy and not (folder / "config.json").is_file():
            answers.model()
        return find_known(answers, facts, chat=_has_chat(answers, target), wanted=asking.wanted, least=asking.least)


def _identity(model: str | os.PathLike[str], asking: Asking) -> dict[str, str]:
    """Which model is asked, in which precision."""
    return identity_of(model) | {"precision": asking.precision}


def facts_of_packages() -> list[Fact]:
    """The facts of all installed packages.

    Raises:
        MissingExtraError: None is installed.
    """
    facts = [fact for source in SOURCES if source.installed for fact in source.facts()]
    if not facts:
        names = ", ".join(missing_packages(SOURCES))
        raise MissingExtraError(
            f"facts to ask for need one of {names}: pip install 'corsa-plugins[real]', or give your own with --facts"
        )
    return facts


def _has_chat(answers: Answers, target: Path) -> bool:
    """Whether there is a chat template; asked of the tokenizer once, which is loaded with the model."""
    if (target / ABOUT).is_file():
        chat = _read_about(target).get("chat_template")
        if not isinstance(chat, bool):
            raise DamagedError(
                f"{target / ABOUT} is damaged, and does not say whether the model has a chat template: restore it, or "
                "delete it, and the model is looked at again"
            )
        return chat
    chat = answers.model()[1].chat_template is not None
    write_sealed(target / ABOUT, {"chat_template": chat})
    return chat


def _read_about(target: Path) -> dict[str, Any]:
    """What is known of an atlas.

    Raises:
        DamagedError: It is not what was written.
    """
    try:
        return read_sealed(target / ABOUT)
    except DamagedError as error:
        raise DamagedError(f"{error}; or delete it, and the model is looked at again") from error


def _write_requests(target: Path, files: Mapping[str, Sequence[EditRequest]]) -> None:
    """Write them; those of an earlier call that are not among them are of another plan, and are removed."""
    for file in [*target.glob("round_*.jsonl"), *(target / f"{name}.jsonl" for name in files)]:
        if not files.get(file.stem):
            file.unlink(missing_ok=True)
    for name, requests in files.items():
        if requests:
            write_requests(target / f"{name}.jsonl", requests)


def _write_known(target: Path, knowledge: Knowledge, model: Mapping[str, str], draw: Draw, asking: Asking) -> None:
    """Write what is known, and what it was made by and of: that comes last, and has the checksum of the other."""
    lines = (json.dumps(_line(known), ensure_ascii=False) + "\n" for known in knowledge.known)
    atomic_write_text(target / KNOWN, "".join(lines))
    about = {
        "chat_template": _read_about(target)["chat_template"],
        "known": knowledge.counts,
        "left_out": knowledge.left_out,
        **model,
        "seed": draw.seed,
        "settings": {
            **{name: value for name, value in asdict(draw).items() if name != "seed"},
            "wanted": asking.wanted,
            "least": asking.least,
        },
        "versions": versions(),
        "sha256": checksums(target, [KNOWN]),
    }
    write_sealed(target / ABOUT, about)


def _line(known: Known) -> dict[str, Any]:
    fact = known.fact
    line: dict[str, Any] = {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}
    if fact.aliases:
        line["aliases"] = fact.aliases
    return line | {"statements": fact.statements, "questions": fact.questions, "forms": known.forms}


def facts_of_file(path: str | os.PathLike[str]) -> list[Fact]:
    """The user's own facts; relations of the packages need no forms.

    Raises:
        FactError: As for :func:`~corsa_plugins.atlas.facts.read_facts`.
    """
    return read_facts(path, [relation for source in SOURCES for relation in source.relations])
