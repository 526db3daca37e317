"""``--alone``, ``--survive`` and ``--judge`` of ``corsa protocol wild``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from corsa_plugins.cli.values import load
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.bench.protocols.wild import Wild, WildRun
    from corsa_plugins.bench.wild.judge import Agreement, Labelled, WildJudge
    from corsa_plugins.model.placement import Where

__all__ = ["Judging", "check_wild", "make_wild"]

_ALONE = 5


def check_wild(wild: bool, options: Mapping[str, Any]) -> None:
    """Refuse what only the protocol ``wild`` takes, and what does not go together.

    Args:
        wild: Whether it is that protocol.
        options: By the name of its option, as given.

    Raises:
        SettingError: The message names the option of the command line.
    """
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given and not wild:
        raise SettingError(f"{', '.join(given)}: only the protocol wild takes it")
    if options["judge"] and options["judge-model"]:
        raise SettingError("--judge and --judge-model: give one of them")
    if options["judge-labels"] and not (options["judge"] or options["judge-model"]):
        raise SettingError("--judge-labels needs a judge: --judge COMMAND, or --judge-model")
    names = _trials(options)
    if options["survive-text"] and "training" not in names:
        raise SettingError("--survive-text is for --survive training")
    if options["survive"] is not None:
        from corsa_plugins.bench.wild.survive import check_trials

        check_trials(names, options["survive-text"] is not None)


def make_wild(model: Any, tokenizer: Any, options: Mapping[str, Any], *, seed: int, max_new_tokens: int | None) -> Wild:
    """What is asked in the wild.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        options: As for :func:`check_wild`.
        seed: Of further training.
        max_new_tokens: Where outputs are cut; by default 64.

    Raises:
        SettingError: An unknown trial, or training without a text.
    """
    from corsa_plugins.alphaedit.statistics.texts import read_texts
    from corsa_plugins.bench.protocols.wild import Wild
    from corsa_plugins.bench.wild.survive import FurtherTraining, trials

    training = None
    if options["survive-text"]:
        training = FurtherTraining(tuple(read_texts(str(options["survive-text"]))), seed=seed)
    names = _trials(options)
    survive = tuple(trials(names, model, tokenizer, training)) if names else ()
    alone = _ALONE if options["alone"] is None else options["alone"]
    return Wild(max_new_tokens or Wild.max_new_tokens, alone, survive)


def _trials(options: Mapping[str, Any]) -> list[str]:
    return [name.strip() for name in (options["survive"] or "").split(",") if name.strip()]


@dataclass(frozen=True)
class Judging:
    """A judge, and labels to measure it by.

    Attributes:
        judge: The judge.
        labels: Made by hand; may be empty.
    """

    judge: WildJudge
    labels: list[Labelled]

    @classmethod
    def of(cls, options: Mapping[str, Any], device: Where, dtype: str, quiet: bool) -> Judging | None:
        """As the options say; ``None``: there is no judge.

        Raises:
            JudgeError: The labels cannot be read.
        """
        from corsa_plugins.bench.wild.judge import CommandJudge, ModelJudge, read_labels

        labels = read_labels(options["judge-labels"]) if options["judge-labels"] else []
        if options["judge"]:
            return cls(CommandJudge(options["judge"]), labels)
        if options["judge-model"]:
            name = options["judge-model"]
            loaded, tokenizer = load(name, device, dtype, quiet)
            return cls(ModelJudge(loaded, tokenizer, name), labels)
        return None

    def on(self, run: WildRun, folder: Path) -> WildRun:
        """A run with its verdicts, which are kept in its folder and written to its file.

        Raises:
            JudgeError: The judge does not judge.
        """
        from corsa_plugins.bench.protocols.wild import WILD, write_wild
        from corsa_plugins.bench.wild.judge import judge_answers

        judged = run.judged(lambda answers: judge_answers(self.judge, answers, folder / self._file))
        write_wild(judged, folder / WILD, {"judge": self.judge.key, "agreement": self.agreement()})
        return judged

    def agreement(self) -> dict[str, dict[str, Any]]:
        """With the labels, as plain data; empty without them."""
        return {name: asdict(one) for name, one in self._agreement().items()}

    def said(self) -> None:
        """The agreement, on the terminal."""
        for name, one in self._agreement().items():
            kappa = "undefined" if one.kappa is None else f"{one.kappa:.2f}"
            typer.echo(
                f"{name}: agrees with {100 * one.share:.0f} % of {one.count} labels (kappa {kappa}; "
                f"{one.too_kind} too kind, {one.too_strict} too strict)"
            )

    def _agreement(self) -> dict[str, Agreement]:
        from corsa_plugins.bench.wild.judge import agreement

        return agreement(self.judge, self.labels) if self.labels else {}

    @property
    def _file(self) -> str:
        import hashlib

        return f"verdicts-{hashlib.sha256(self.judge.key.encode()).hexdigest()[:8]}.jsonl"
