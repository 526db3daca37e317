"""A method taken through a plan, step by step, so that a stopped run can be taken up again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from tqdm.auto import tqdm

from corsa_plugins.bench.evaluation import Evaluation, evaluate, load_evaluation, save_evaluation
from corsa_plugins.bench.evaluation.checkpoint import input_key
from corsa_plugins.bench.evaluation.evaluate import longest_target
from corsa_plugins.bench.evaluation.tables import SUMMARY
from corsa_plugins.bench.protocols.plan import UNTOUCHED, UpdatePlan, folder_name
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import CorsaError
from corsa_plugins.files import InUseError, atomic_directory, atomic_write_text, sole_use
from corsa_plugins.methods.history import HISTORY, read_history
from corsa_plugins.methods.spec import REPORT, Method, Session, in_form
from corsa_plugins.model.identity import model_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Measure", "ProtocolError", "run_protocol"]

Measure = Callable[[Any], Any]
"""Asks a model something of its own, and gives plain data for JSON."""

logger = logging.getLogger(__name__)

_RUN, _SUMMARY, _UPDATE = "run.json", "summary.json", "update.json"
_EXTRA_TOKENS = 16  # as evaluate() gives an answer beyond the longest one to be found


class ProtocolError(CorsaError, ValueError):
    """A folder that holds another run, or an update that cannot be put back."""


def run_protocol(
    method: Method,
    plan: UpdatePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    chat_template: bool = False,
    measures: Mapping[str, Measure] | None = None,
    progress: bool = True,
    news: Callable[[float, str], None] | None = None,
) -> ProtocolResult:
    """Make the updates of a plan one after the other, and evaluate the model at every moment the plan names.

    Every set is asked with the same settings at every moment, so that moments can be compared. Whatever happens, the
    model is given back as it was, bit for bit.

    A run with ``output`` can be stopped at any time, and called again with the same arguments. Each finished update is
    kept there (adapter, edit state or changed weights), and put back instead of being made again; the model must then
    be the one it was, by a hash of all its weights. Each finished evaluation is kept, and of an unfinished one the
    requests that were answered. An update that was stopped half-way is made again from its start. Nothing but updates
    depends on chance, and they are seeded: on a CPU a resumed run gives what an uninterrupted one does.

    Args:
        method: Also one of :func:`corsa_plugins.methods.registry.make_method`.
        plan: What to do.
        model: A causal language model without updates or adapters.
        tokenizer: Its tokenizer.
        output: Folder for the run; ``None``: nothing is kept.
        seed: Of the updates.
        batch_size: Sequences per forward pass in evaluations.
        max_new_tokens: Length of answers in tokens; by default that of the longest answer to be found in the whole
            plan, plus 16.
        chat_template: Ask through the tokenizer's chat template; the method is trained in the same form, unless its
            settings say in which.
        measures: Further things to ask the model before the first update and after the last, by name, such as
            :func:`corsa_plugins.bench.ability.general_ability`. A name stands for what is asked: what it gave is kept
            in ``output`` like an evaluation, and not asked again.
        progress: Show a progress bar.
        news: Told at every step which share of the run is done, in [0, 1], and what comes next.

    Returns:
        All evaluations and measures; the same are in ``output``.

    Raises:
        ProtocolError: The folder holds another run, or one that is at work, or an update that is put back gives another
            model.
        CorsaError: As raised by the method or by :func:`corsa_plugins.bench.evaluation.evaluate`.
    """
    if max_new_tokens is None:
        items: list[EditRequest | Probe] = [request for one in plan.sets for request in one.requests]
        max_new_tokens = longest_target(tokenizer, [*items, *_as_probes(plan.untouched)]) + _EXTRA_TOKENS
    method = in_form(method, chat_template)
    asking = {"max_new_tokens": max_new_tokens, "chat_template": chat_template}
    with ExitStack() as stack:
        if output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corsa-protocol-")))
        else:
            folder = Path(output)
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(f"{folder} is a file: name a folder for the run")
        try:
            stack.enter_context(sole_use(folder))
        except InUseError as error:
            raise ProtocolError(str(error)) from None
        _claim(folder, _key(method, plan, model, tokenizer, seed, asking))
        run = _Run(method, plan, tokenizer, folder, {**asking, "batch_size": batch_size}, measures or {})
        # disable=None: no bar where nobody watches, as in a log file
        run.bar = stack.enter_context(
            tqdm(total=run.steps, desc=method.name, disable=None if progress else True, leave=False, unit="step")
        )
        run.news = news
        if not run.finished():
            session = method.start(model, tokenizer, seed=seed)
            stack.callback(session.close)
            run.go(session)
        result = run.result()
        asked = {name: [result.measured[moment, name] for moment in (0, len(plan.sets))] for name in measures or {}}
        head = {"protocol": plan.name, "method": method.name, "measures_before_and_after": asked}
        text = json.dumps({**head, **result.summary().as_dict()}, indent=2)
        atomic_write_text(folder / _SUMMARY, text + "\n")
        return result


class _Run:
    """What is in the folder, and what is still to be done."""

    def __init__(
        self,
        method: Method,
        plan: UpdatePlan,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        asking: dict[str, Any],
        measures: Mapping[str, Measure],
    ) -> None:
        self.method = method
        self.plan = plan
        self.tokenizer = tokenizer
        self.folder = folder
        self.asking = asking
        self.measures = measures
        self.bar: Any = None
        self.news: Callable[[float, str], None] | None = None
        self.steps_done = 0
        self.wanted = [
            (moment, name)
            for moment, numbers in enumerate(plan.asked)
            for name in (*(plan.sets[number - 1].name for number in numbers), *([UNTOUCHED] if plan.untouched else []))
        ]

    @property
    def steps(self) -> int:
        return len(self.plan.sets) + len(self.wanted) + 2 * len(self.measures)

    def finished(self) -> bool:
        updates = range(1, len(self.plan.sets) + 1)
        measured = all(self._measured(moment, name).is_file() for moment in self._ends for name in self.measures)
        return measured and all(self._has(*w) for w in self.wanted) and all(self._update(n).is_dir() for n in updates)

    def go(self, session: Session) -> None:
        self._evaluate(session, 0)
        for number in range(1, len(self.plan.sets) + 1):
            if self._update(number).is_dir():
                self._restore(session, number)
            else:
                self._make(session, number)
            self._done()
            self._evaluate(session, number)

    def result(self) -> ProtocolResult:
        evaluations = {one: load_evaluation(self._place(*one)) for one in self.wanted}
        numbers = range(1, len(self.plan.sets) + 1)
        seconds = [_read(self._update(n) / _UPDATE)["seconds"] for n in numbers]
        measured = {
            (moment, name): _read(self._measured(moment, name)) for moment in self._ends for name in self.measures
        }
        kept = {n: self._update(n) / HISTORY for n in numbers}
        histories = {n: read_history(path) for n, path in kept.items() if path.is_file()}
        told = {n: self._update(n) / REPORT for n in numbers}
        reports = {n: _read(path) for n, path in told.items() if path.is_file()}
        return ProtocolResult(self.plan, self.method.name, evaluations, tuple(seconds), measured, histories, reports)

    @property
    def _ends(self) -> tuple[int, int]:
        return 0, len(self.plan.sets)

    def _make(self, session: Session, number: int) -> None:
        one = self.plan.sets[number - 1]
        self._doing(f"update {number}: {one.name}")
        with atomic_directory(self._update(number)) as folder:
            start = time.monotonic()
            try:
                session.update(one.requests, folder)
            except SafetensorError as error:
                raise ProtocolError(
                    f"{self._update(number)} cannot be written ({error}): make room, and run it again to go on"
                ) from error
            took = time.monotonic() - start
            if (folder / HISTORY).is_file():  # what was looked at on the way is no part of the update
                took -= sum(record.get("seconds", 0.0) for record in read_history(folder / HISTORY))
            done = {"seconds": took, "model": model_key(session.model, self.tokenizer)["model"]}
            (folder / _UPDATE).write_text(json.dumps(done) + "\n", encoding="utf-8")

    def _restore(self, session: Session, number: int) -> None:
        folder = self._update(number)
        known = _read(folder / _UPDATE)["model"]
        try:
            session.restore(folder)
        except SafetensorError as error:
            raise ProtocolError(f"{folder} is damaged ({error}). {self._made_again(number)}") from error
        if model_key(session.model, self.tokenizer)["model"] != known:
            raise ProtocolError(
                f"{folder}: the update cannot be put back as it was; what is evaluated from here on would be another "
                f"model than before. {self._made_again(number)}"
            )
        logger.info("%s: put back", folder)

    def _made_again(self, number: int) -> str:
        later = ", ".join(str(self._update(n)) for n in range(number, len(self.plan.sets) + 1))
        return f"Delete {later} and the evaluations of these moments, or begin in a new folder."

    def _evaluate(self, session: Session, moment: int) -> None:
        for at, name in self.wanted:
            if at != moment:
                continue
            if not self._has(at, name):
                self._doing(f"asking: {name}, {_when(moment)}")
                self._save(self._ask(session.model, at, name), at, name)
            self._done()
        for name, measure in self.measures.items() if moment in self._ends else ():
            path = self._measured(moment, name)
            if not path.is_file():
                self._doing(f"asking: {name}, {_when(moment)}")
                atomic_write_text(path, json.dumps(measure(session.model), indent=2) + "\n")
            self._done()

    def _ask(self, model: Any, moment: int, name: str) -> Evaluation:
        untouched = name == UNTOUCHED
        requests: Sequence[EditRequest] = () if untouched else self._requests(name)
        return evaluate(
            model,
            self.tokenizer,
            requests,
            untouched=self.plan.untouched if untouched else None,
            label=f"{self.method.name}: {name}, {_when(moment)}",
            checkpoint=self._place(moment, name).with_suffix(".unfinished"),
            progress=False,
            **self.asking,
        )

    def _save(self, evaluation: Evaluation, moment: int, name: str) -> None:
        place = self._place(moment, name)
        save_evaluation(evaluation, place)
        place.with_suffix(".unfinished").unlink()

    def _doing(self, what: str) -> None:
        self.bar.set_postfix_str(what)
        if self.news is not None:
            self.news(self.steps_done / self.steps, what)

    def _done(self) -> None:
        self.bar.update()
        self.steps_done += 1
        if self.news is not None and self.steps_done == self.steps:
            self.news(1.0, "done")

    def _requests(self, name: str) -> tuple[EditRequest, ...]:
        return next(one.requests for one in self.plan.sets if one.name == name)

    def _has(self, moment: int, name: str) -> bool:
        return (self._place(moment, name) / SUMMARY).is_file()

    def _place(self, moment: int, name: str) -> Path:
        return self.folder / "evaluations" / f"after-{moment:03d}" / folder_name(name)

    def _measured(self, moment: int, name: str) -> Path:
        return self.folder / "measures" / f"after-{moment:03d}" / f"{folder_name(name)}.json"

    def _update(self, number: int) -> Path:
        return self.folder / "updates" / f"{number:03d}-{folder_name(self.plan.sets[number - 1].name)}"


def _when(moment: int) -> str:
    return f"after update {moment}" if moment else "before"


def _as_probes(facts: Sequence[Probe | EditRequest]) -> list[Probe]:
    return [Probe(prompt=f.prompt, answer=f.target_new) if isinstance(f, EditRequest) else f for f in facts]


def _key(
    method: Method,
    plan: UpdatePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    asking: dict[str, Any],
) -> dict[str, Any]:
    key = {
        "protocol": plan.name,
        "asked": plan.asked,
        "sets": [{"name": one.name, "n": len(one.requests), **input_key(one.requests)} for one in plan.sets],
        "untouched": {"n": len(plan.untouched), **input_key(plan.untouched)},
        "method": method.describe(),
        "seed": seed,
        **asking,
        **model_key(model, tokenizer),
    }
    return json.loads(json.dumps(key, default=str))  # as it is read back


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Make the folder this run's, or see that it is."""
    path = folder / _RUN
    if not path.exists():
        atomic_write_text(path, json.dumps(key, indent=2) + "\n")
        return
    found = _read(path)
    differing = sorted(name for name in {**found, **key} if found.get(name) != key.get(name))
    if differing:
        raise ProtocolError(
            f"{folder} holds another run (other {', '.join(differing)}): give the same arguments to go on with it, or "
            "choose another folder"
        )
    for leftover in (folder / "updates").glob(".*.part"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProtocolError(f"{path} is missing: the folder is damaged; begin in a new one") from None
    except ValueError as error:
        raise ProtocolError(f"{path} is damaged ({error}): begin in a new folder") from error
    if not isinstance(found, dict):
        raise ProtocolError(f"{path} is damaged: begin in a new folder")
    return found
