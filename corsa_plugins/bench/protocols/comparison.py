"""Several methods through one plan, one after the other, with what else is asked of each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.ability import Ability, Harness, compare_ability
from corsa_plugins.bench.protocols.plan import UpdatePlan, method_folder
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.bench.protocols.run import Measure, run_protocol
from corsa_plugins.bench.protocols.shares import (
    FORGETTING,
    ForgettingPoint,
    forgetting_points,
    run_shares,
    write_forgetting,
)
from corsa_plugins.bench.protocols.wild import WILD, Wild, WildRun, read_run, run_alone, standing_requests, write_wild
from corsa_plugins.bench.wild.drift import HeldOut
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.methods.spec import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ABILITY", "DRIFT", "MethodRun", "run_methods"]

ABILITY, DRIFT = "ability.json", "drift.json"
"""Names of files, in the folder of a method."""


@dataclass(frozen=True)
class MethodRun:
    """What became of one of the methods.

    Attributes:
        name: The name by which it was chosen.
        result: Its run.
        forgetting: Of the first update, by share of the later ones, where shares are wanted.
        ability: General ability before the first update and after the last, where a harness is given.
        drift: How far the hidden states of the untouched facts have moved after the last update, where there are any
            (:meth:`corsa_plugins.bench.wild.drift.HeldOut.drift`).
        wild: What edits are worth in the wild, where that is asked.
    """

    name: str
    result: ProtocolResult
    forgetting: tuple[ForgettingPoint, ...] = ()
    ability: tuple[Ability, Ability] | None = None
    drift: Mapping[str, Any] | None = None
    wild: WildRun | None = None


def run_methods(
    methods: Mapping[str, Method],
    plan: UpdatePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str],
    *,
    shares: Sequence[float] = (),
    harness: Harness | None = None,
    wild: Wild | None = None,
    **settings: Any,
) -> Iterator[MethodRun]:  # one keyword for each thing that may be asked besides
    """Take each method through the plan, and yield what became of it before the next one begins.

    A run that was stopped goes on where it was.

    Args:
        methods: By name; each has a folder of its name in ``output``.
        plan, model, tokenizer: As for :func:`corsa_plugins.bench.protocols.run_protocol`.
        output: A folder.
        shares: Of the later updates, to run the plan with besides; see
            :func:`corsa_plugins.bench.protocols.run_shares`.
        harness: What to ask before the first update and after the last.
        wild: What to ask in the wild: free answers before the first update and after the last, of single edits, and
            after what the edited model goes through.
        settings: As for :func:`corsa_plugins.bench.protocols.run_protocol`, for every method alike.

    Raises:
        SettingError: As the run raises it, with the name of the method in front.
        ProtocolError: A folder holds another run.
    """
    asking: dict[str, Any] = {name: settings[name] for name in ("batch_size", "chat_template") if name in settings}
    measures: dict[str, Measure] = {}
    if harness is not None:
        # The name stands for what is asked, and is that of a file.
        name = f"{' '.join(['harness', *harness.names])[:60]} {harness.key}"
        measures[name] = lambda edited: harness.ask(edited, tokenizer)
    afterwards: dict[str, Measure] = {}
    if plan.untouched:
        held_out = HeldOut(model, tokenizer, [fact.prompt for fact in plan.untouched], **asking)
        afterwards["hidden states"] = held_out.drift
    requests = standing_requests(plan)
    asked = wild.measures(requests, tokenizer, **asking) if wild else None
    free: dict[str, Measure] = {asked.name: asked.ask} if asked else {}
    later = {**afterwards, **(asked.afterwards if asked else {})}
    for name, method in methods.items():
        folder = Path(output) / method_folder(name)
        alone: list[WildRun] = []
        try:
            result = run_protocol(
                method, plan, model, tokenizer, folder, measures={**measures, **free}, afterwards=later, **settings
            )
            if wild:
                alone = run_alone(method, wild, requests, model, tokenizer, folder, asking, **settings)
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from error
        last = len(plan.sets)
        forgetting: list[ForgettingPoint] = []
        if shares:
            by_share = run_shares(method, plan, model, tokenizer, folder, shares, measures=measures, **settings)
            forgetting = forgetting_points(by_share)
            write_forgetting([*forgetting, *forgetting_points(by_share, untouched=True)], folder / FORGETTING)
        abilities = [(result.measured[0, name], result.measured[last, name]) for name in measures]
        for before, after in abilities:
            _write_ability(before, after, folder / ABILITY)
        drifts = [result.measured[last, name] for name in afterwards]
        for drift in drifts:
            atomic_write_text(folder / DRIFT, json.dumps({"drift": {result.method: drift}}, indent=2) + "\n")
        run = read_run(result, asked, alone) if asked else None
        if run:
            write_wild(run, folder / WILD)
        yield MethodRun(
            name, result, tuple(forgetting), abilities[0] if abilities else None, drifts[0] if drifts else None, run
        )


def _write_ability(before: Ability, after: Ability, path: Path) -> None:
    changes = {
        task: {metric: asdict(change) for metric, change in metrics.items()}
        for task, metrics in compare_ability(before, after).items()
    }
    atomic_write_text(path, json.dumps(changes, indent=2) + "\n")
