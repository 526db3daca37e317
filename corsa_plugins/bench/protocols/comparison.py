"""Several methods through one plan, one after the other, with what else is asked of each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.ability import Ability, Harness, compare_ability
from corsa_plugins.bench.protocols.plan import UpdatePlan, method_folder
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.bench.protocols.run import run_protocol
from corsa_plugins.bench.protocols.shares import (
    FORGETTING,
    ForgettingPoint,
    forgetting_points,
    run_shares,
    write_forgetting,
)
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.methods.spec import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ABILITY", "MethodRun", "run_methods"]

ABILITY = "ability.json"
"""Name of the file, in the folder of a method."""


@dataclass(frozen=True)
class MethodRun:
    """What became of one of the methods.

    Attributes:
        result: Its run.
        forgetting: Of the first update, by share of the later ones, where shares are wanted.
        ability: General ability before the first update and after the last, where a harness is given.
    """

    result: ProtocolResult
    forgetting: tuple[ForgettingPoint, ...] = ()
    ability: tuple[Ability, Ability] | None = None


def run_methods(
    methods: Mapping[str, Method],
    plan: UpdatePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str],
    *,
    shares: Sequence[float] = (),
    harness: Harness | None = None,
    **settings: Any,
) -> Iterator[MethodRun]:
    """Take each method through the plan, and yield what became of it before the next one begins.

    A run that was stopped goes on where it was.

    Args:
        methods: By name; each has a folder of its name in ``output``.
        plan, model, tokenizer: As for :func:`corsa_plugins.bench.protocols.run_protocol`.
        output: A folder.
        shares: Of the later updates, to run the plan with besides; see
            :func:`corsa_plugins.bench.protocols.run_shares`.
        harness: What to ask before the first update and after the last.
        settings: As for :func:`corsa_plugins.bench.protocols.run_protocol`, for every method alike.

    Raises:
        SettingError: As the run raises it, with the name of the method in front.
        ProtocolError: A folder holds another run.
    """
    measures: dict[str, Callable[[Any], Any]] = {}
    if harness is not None:
        # The name stands for what is asked, and is that of a file.
        name = f"{' '.join(['harness', *harness.names])[:60]} {harness.key}"
        measures[name] = lambda edited: harness.ask(edited, tokenizer)
    for name, method in methods.items():
        folder = Path(output) / method_folder(name)
        try:
            result = run_protocol(method, plan, model, tokenizer, folder, measures=measures, **settings)
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from error
        forgetting: list[ForgettingPoint] = []
        if shares:
            by_share = run_shares(method, plan, model, tokenizer, folder, shares, measures=measures, **settings)
            forgetting = forgetting_points(by_share)
            write_forgetting([*forgetting, *forgetting_points(by_share, untouched=True)], folder / FORGETTING)
        abilities = [(result.measured[0, name], result.measured[len(plan.sets), name]) for name in measures]
        for before, after in abilities:
            _write_ability(before, after, folder / ABILITY)
        yield MethodRun(result, tuple(forgetting), abilities[0] if abilities else None)


def _write_ability(before: Ability, after: Ability, path: Path) -> None:
    changes = {
        task: {metric: asdict(change) for metric, change in metrics.items()}
        for task, metrics in compare_ability(before, after).items()
    }
    atomic_write_text(path, json.dumps(changes, indent=2) + "\n")
