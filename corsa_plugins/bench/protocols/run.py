"""A method taken through a plan, step by step, so that a stopped run can be taken up again."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from safetensors import SafetensorError
from tqdm.auto import tqdm

from corsa_plugins.bench.evaluation import Evaluation, evaluate
from corsa_plugins.bench.evaluation.prompts import answer_length, as_probe
from corsa_plugins.bench.protocols.folder import UPDATE, ProtocolError, RunFolder
from corsa_plugins.bench.protocols.plan import UNTOUCHED, UpdatePlan, folder_name
from corsa_plugins.bench.protocols.result import ProtocolResult
from corsa_plugins.data.requests import EditRequest, Probe, input_key
from corsa_plugins.files import InUseError, atomic_directory, sole_use
from corsa_plugins.manifest import DamagedError, check_folder, write_manifest
from corsa_plugins.methods.effect import read_effect
from corsa_plugins.methods.history import HISTORY, read_history
from corsa_plugins.methods.shared import shared_seconds
from corsa_plugins.methods.spec import Method, Session, in_form
from corsa_plugins.model.identity import model_key
from corsa_plugins.sealed import write_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Asking", "Measure", "Progress", "ProtocolError", "run_protocol"]

Measure = Callable[[Any], Any]
"""Asks a model something of its own, and gives plain data for JSON."""

Progress = Callable[[float, str], None]
"""Takes the share of the run that is done, in [0, 1], and what comes next."""

logger = logging.getLogger(__name__)


class Asking(TypedDict, total=False):
    """How a model is asked, at every moment alike.

    Attributes:
        batch_size: Sequences per forward pass; by default 64.
        max_new_tokens: Length of answers in tokens; by default that of the longest answer to be found in the whole
            plan, plus 16.
        chat_template: Ask through the tokenizer's chat template; the method is trained in the same form, unless its
            settings say in which.
    """

    batch_size: int
    max_new_tokens: int | None
    chat_template: bool


# Ten parameters: what is run on what, and what is kept, asked beside and told.
def run_protocol(
    method: Method,
    plan: UpdatePlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    measures: Mapping[str, Measure] | None = None,
    afterwards: Mapping[str, Measure] | None = None,
    progress: bool | Progress = True,
    before: str | os.PathLike[str] | None = None,
    **asking: Unpack[Asking],
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
        measures: Further things to ask the model before the first update and after the last, by name, such as
            :func:`corsa_plugins.bench.ability.general_ability`. A name stands for what is asked: what it gave is kept
            in ``output`` like an evaluation, and not asked again. Of what they give under ``"summary"``, the run's
            summary has no more than that.
        afterwards: Likewise, to be asked after the last update alone.
        progress: Show a progress bar; or what is told at every step how far the run is.
        before: A folder for what the model answers before the first update, which is the same for every method: the
            first run asks, and those that share the folder read it. One that comes meanwhile waits.
        **asking: As for :class:`Asking`.

    Returns:
        All evaluations and measures; the same are in ``output``.

    Raises:
        ProtocolError: The folder holds another run, or one that is at work, or an update that is put back gives another
            model.
        CorsaError: As raised by the method or by :func:`corsa_plugins.bench.evaluation.evaluate`.
    """
    chosen = _complete(asking, plan, tokenizer)
    method = in_form(method, chosen["chat_template"])
    with ExitStack() as stack:
        if output is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corsa-protocol-")))
        else:
            path = Path(output)
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(f"{path} is a file: name a folder for the run")
        try:
            stack.enter_context(sole_use(path))
        except InUseError as error:
            raise ProtocolError(str(error)) from None
        folder = RunFolder(path, plan, list(measures or ()), list(afterwards or ()))
        same_answers = {name: value for name, value in chosen.items() if name != "batch_size"}
        folder.claim({**_key(method, plan, seed), **same_answers, **model_key(model, tokenizer)})
        if not folder.is_finished():
            steps = stack.enter_context(_Steps(method.name, folder, progress))
            session = method.start(model, tokenizer, seed=seed)
            stack.callback(session.close)
            shared = None if before is None else Path(before)
            measured = {**(measures or {}), **(afterwards or {})}
            _Run(session, tokenizer, method.name, folder, steps, chosen, shared).go(measured)
        result = folder.result(method.name)
        folder.save_summary(result)
        return result


class _Steps:
    """How far a run is: a bar, or whoever is told."""

    def __init__(self, title: str, folder: RunFolder, progress: bool | Progress) -> None:
        self.total = len(folder.numbers) + len(folder.plan.evaluations()) + len(folder.asked)
        self.done = 0
        self.tell: Progress = progress if callable(progress) else lambda share, next_step: None
        # disable=None: no bar where nobody watches, as in a log file
        hidden = None if progress is True else True
        self.bar: Any = tqdm(total=self.total, desc=title, disable=hidden, leave=False, unit="step")

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def begin(self, what: str) -> None:
        self.bar.set_postfix_str(what)
        self.tell(self.done / self.total, what)

    def end(self) -> None:
        self.bar.update()
        self.done += 1
        if self.done == self.total:
            self.tell(1.0, "done")


class _Run:
    """One method on its way through the plan; what is in the folder is not made or asked again."""

    def __init__(
        self,
        session: Session,
        tokenizer: PreTrainedTokenizerBase,
        title: str,
        folder: RunFolder,
        steps: _Steps,
        asking: Asking,
        before: Path | None,
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.title = title
        self.folder = folder
        self.plan = folder.plan
        self.steps = steps
        self.asking = asking
        self.before = before

    def go(self, measures: Mapping[str, Measure]) -> None:
        for moment in (0, *self.folder.numbers):
            if moment:
                if self.folder.has_update(moment):
                    self._restore(moment)
                else:
                    self._make(moment)
                self.steps.end()
            self._evaluate(moment)
            for at, name in self.folder.asked:
                if at == moment:
                    self._measure(moment, name, measures[name])

    def _make(self, number: int) -> None:
        update = self.plan.sets[number - 1]
        self.steps.begin(f"update {number}: {update.name}")
        with atomic_directory(self.folder.update(number)) as folder:
            start = time.monotonic()
            try:
                self.session.update(update.requests, folder)
            except SafetensorError as error:
                raise ProtocolError(
                    f"{self.folder.update(number)} cannot be written ({error}): make room, and run it again to go on"
                ) from error
            seconds = time.monotonic() - start
            if (folder / HISTORY).is_file():  # what was looked at on the way is no part of the update
                seconds -= sum(record.get("seconds", 0.0) for record in read_history(folder / HISTORY))
            seconds += shared_seconds(folder) - read_effect(folder).get("seconds", 0.0)
            noted = {"seconds": seconds, "model": self._model_key()}
            write_sealed(folder / UPDATE, noted)
            write_manifest(folder)

    def _restore(self, number: int) -> None:
        folder = self.folder.update(number)
        expected = self.folder.read(folder / UPDATE)["model"]
        try:
            check_folder(folder)
            self.session.restore(folder)
        except (SafetensorError, DamagedError) as error:
            raise ProtocolError(f"{folder} is damaged ({error}). {self._made_again(number)}") from error
        if self._model_key() != expected:
            raise ProtocolError(
                f"{folder}: the update cannot be put back as it was; what is evaluated from here on would be another "
                f"model than before. {self._made_again(number)}"
            )
        logger.info("%s: put back", folder)

    def _made_again(self, number: int) -> str:
        later = ", ".join(str(self.folder.update(n)) for n in self.folder.numbers if n >= number)
        return f"Delete {later} and the evaluations of these moments, or begin in a new folder."

    def _evaluate(self, moment: int) -> None:
        for at, name in self.plan.evaluations():
            if at != moment:
                continue
            if not self.folder.has_evaluation(moment, name):
                self.steps.begin(f"asking: {name}, {_when(moment)}")
                self.folder.save_evaluation(self._answers(moment, name), moment, name)
            self.steps.end()

    def _measure(self, moment: int, name: str, measure: Measure) -> None:
        path = self.folder.measure(moment, name)
        if not path.is_file():
            self.steps.begin(f"asking: {name}, {_when(moment)}")
            write_sealed(path, measure(self.session.model))
        self.steps.end()

    def _answers(self, moment: int, name: str) -> Evaluation:
        requests = next((update.requests for update in self.plan.sets if update.name == name), ())
        untouched = self.plan.untouched if name == UNTOUCHED else None
        with ExitStack() as stack:
            checkpoint = self.folder.checkpoint(moment, name)
            if self.before is not None and moment == 0:
                stack.enter_context(sole_use(self.before, wait=True))
                asked = input_key([*requests, *map(as_probe, untouched or ())])
                checkpoint = self.before / f"{folder_name(name)}-{asked['requests']}.jsonl"
            return evaluate(
                self.session.model,
                self.tokenizer,
                requests,
                untouched=untouched,
                label=f"{self.title}: {name}, {_when(moment)}",
                checkpoint=checkpoint,
                progress=False,
                **self.asking,
            )

    def _model_key(self) -> Any:
        return model_key(self.session.model, self.tokenizer)["model"]


def _when(moment: int) -> str:
    return f"after update {moment}" if moment else "before"


def _complete(asking: Asking, plan: UpdatePlan, tokenizer: PreTrainedTokenizerBase) -> Asking:
    """With every setting, so that all moments are asked alike."""
    unknown = sorted(set(asking) - set(Asking.__annotations__))
    if unknown:
        raise TypeError(f"run_protocol() got an unexpected keyword argument {unknown[0]!r}")
    length = asking.get("max_new_tokens")
    if length is None:
        items: list[EditRequest | Probe] = [request for update in plan.sets for request in update.requests]
        length = answer_length(tokenizer, [*items, *map(as_probe, plan.untouched)])
    return {
        "batch_size": asking.get("batch_size", 64),
        "max_new_tokens": length,
        "chat_template": asking.get("chat_template", False),
    }


def _key(method: Method, plan: UpdatePlan, seed: int) -> dict[str, Any]:
    """What updates and questions depend on."""
    return {
        "protocol": plan.name,
        "asked": plan.evaluated,
        "sets": [{"name": u.name, "n": len(u.requests), **input_key(u.requests)} for u in plan.sets],
        "untouched": {"n": len(plan.untouched), **input_key(plan.untouched)},
        "method": method.describe(),
        "seed": seed,
    }
