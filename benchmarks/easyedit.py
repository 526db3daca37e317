"""EasyEdit's AlphaEdit, AlphaEdit+ and R-SFT on the testbed, through EasyEdit and by its own metrics.

    EASYEDIT_HOME=~/EasyEdit python -m benchmarks.easyedit [--seeds 3 4 5] [--output runs/easyedit]

Needs a clone of EasyEdit and a Python that can import it (tests/easyedit_ext/requirements.txt). Every run is one
``BaseEditor.batch_edit`` of 50 facts on a model that EasyEdit has just loaded, and is measured with all of them in
force. The metrics are EasyEdit's:

* rewrite, rephrase: the share of target_new's tokens that are the most likely ones, after the prompt and after one of
  its paraphrases, the answer's earlier tokens given;
* locality: the share of tokens that are the same as before the edits, with ten statements for each request of people
  with the same old answer, of facts of people whom no request is about, and with the other facts of its own subject.

EasyEdit's AlphaEdit is the code of the clone, with the values of AlphaEdit+: the same steps, clamp, weight decay and KL
factor, the same contexts, a projector file of the same null space, and in the units it has, which are absolute, the
same learning rate (at the mean norm of the requests' outputs) and the same lambda (on these requests' keys). It has no
setting for the loss at which a value vector is done, 0.05, so that AlphaEdit+ is beside it with that one as well as
with its own; and with its parts off, which makes it AlphaEdit, to tell what the parts do from what the values do.
``batch_edit`` carries no validation prompts, so that smoothed targets are chosen behind the contexts.

Results are appended to `results.jsonl` as they come; a stopped run goes on where it was. EasyEdit's own output is in
`easyedit.log`. About six minutes on one core.
"""

from __future__ import annotations

import tests.easyedit_ext.operators  # noqa: F401  # before all others: a torchvision without its operators

# isort: split
import argparse
import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

import easyedit_ext
from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import AlphaEditSettings, KeyStatistics, collect_statistics
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.solver.closed_form import relative_ridge
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.testbed import EditPlan, Testbed, load_testbed
from corsa_plugins.testbed.corpus import facts_as_text

UNEDITED, ALPHAEDIT, PLUS, OFF = "not edited", "AlphaEdit (EasyEdit's)", "AlphaEdit+", "AlphaEdit+, parts off"
STOP_LOSS = 0.05  # of EasyEdit's AlphaEdit
LOCALITY = ("neighborhood", "untouched", "same subject")
COLUMNS = ("rewrite", "rephrase", *LOCALITY)
N_PROBES = 10  # for each request, of a kind


@dataclass(frozen=True)
class Bench:
    """What every run needs.

    Attributes:
        bed: The testbed, which no run changes: EasyEdit loads its own.
        folder: A folder with a copy of it under a name that tells EasyEdit its kind, and the files that runs read.
        settings: Of AlphaEdit+.
        known: Statistics of the keys to preserve.
        rsft: Fields of R-SFT.
    """

    bed: Testbed
    folder: Path
    settings: AlphaEditSettings
    known: KeyStatistics
    rsft: dict[str, Any]

    @property
    def shared(self) -> dict[str, Any]:
        """Fields of every method."""
        return {"model_name": str(self.folder / "llama-testbed"), "device": "cpu"}

    @property
    def digest(self) -> str:
        """Of all settings: rows made with others are not of this table."""
        return hashlib.sha256(json.dumps([self.settings.as_dict(), self.rsft]).encode()).hexdigest()[:12]

    def of_these(self, rows: Sequence[dict[str, Any]], edits: int) -> list[dict[str, Any]]:
        """The rows that were made with these settings and as many edits."""
        return [row for row in rows if (row["settings"], row["edits"]) == (self.digest, edits)]

    def methods(self) -> dict[str, Callable[[EditPlan, int], Any]]:
        """Hyper-parameters of each method, for the requests and the seed."""
        longer = replace(self.settings, values=replace(self.settings.values, stop_loss=STOP_LOSS))
        return {
            ALPHAEDIT: lambda plan, seed: self.alphaedit(plan.rounds[0]),
            f"{OFF}, v_stop_loss {STOP_LOSS:g}": lambda plan, seed: self.alphaedit_plus(longer.alphaedit()),
            f"{PLUS}, v_stop_loss {STOP_LOSS:g}": lambda plan, seed: self.alphaedit_plus(longer),
            f"{OFF}, its own values": lambda plan, seed: self.alphaedit_plus(self.settings.alphaedit()),
            f"{PLUS}, its own values": lambda plan, seed: self.alphaedit_plus(self.settings),
            "R-SFT": lambda plan, seed: self.r_sft(seed),
            "R-SFT merged": lambda plan, seed: self.r_sft(seed, weight=0.8, density=0.2),
        }

    def alphaedit_plus(self, settings: AlphaEditSettings) -> Any:
        return easyedit_ext.AlphaEditPlusHyperParams.from_settings(
            settings, **self.shared, stats_dir=str(self.folder / "statistics")
        )

    def r_sft(self, seed: int, **fields: Any) -> Any:
        return easyedit_ext.RSFTHyperParams(alg_name="RSFT", seed=seed, **self.shared, **self.rsft, **fields)

    def alphaedit(self, requests: Sequence[EditRequest]) -> Any:
        """EasyEdit's AlphaEdit with our values in its units; what it keeps in its module between calls begins anew."""
        settings, values = self.settings, self.settings.values
        model, tokenizer, architecture = self.bed.model, self.bed.tokenizer, find_architecture(self.bed.model)
        if len(settings.layers) != 1:
            raise SettingError("EasyEdit's AlphaEdit has one lambda for all layers: give settings with one layer")
        (layer,) = settings.layers
        contexts = generate_contexts(model, tokenizer, settings.n_contexts, settings.context_length)
        module = importlib.import_module("easyeditor.models.alphaedit.AlphaEdit_main")
        module.P_loaded = module.cache_c_new = False  # type: ignore[attr-defined]
        module.CONTEXT_TEMPLATES_CACHE = [[contexts[0]], list(contexts[1:])]  # type: ignore[attr-defined]

        space = self.known.null_space(layer, settings.null_space)
        basis = space.coordinates(torch.eye(space.d, dtype=torch.float64), space.n_null)
        projector = self.folder / "null_space_project.pt"
        torch.save((basis.T @ basis).float()[None], projector)

        ridge, rate = settings.ridge, values.lr
        if settings.ridge_unit == "relative":
            keys = request_keys(model, tokenizer, requests, [layer], contexts)[layer]
            ridge = relative_ridge(ridge, space.coordinates(keys), space.n_null)
        if values.lr_unit == "relative":
            outputs = request_outputs(model, tokenizer, requests, layer)
            rate *= float(outputs.norm(dim=0).mean()) / math.sqrt(len(outputs))
        last = len(architecture.blocks) - 1
        names = {
            "rewrite_module_tmp": architecture.ffn(layer).down.name,
            "layer_module_tmp": architecture.block(layer).name,
            "mlp_module_tmp": architecture.ffn(layer).name,
        }
        return importlib.import_module("easyeditor").AlphaEditHyperParams(
            alg_name="AlphaEdit", **self.shared, layers=[layer], layer_selection="all", fact_token=values.fact_token,
            v_num_grad_steps=values.steps, v_lr=rate, clamp_norm_factor=values.clamp, kl_factor=values.kl_factor,
            v_loss_layer=last if values.loss_layer is None else values.loss_layer, v_weight_decay=values.weight_decay,
            L2=ridge, P_loc=str(projector), nullspace_threshold=0.0, stats_dir=str(self.folder), mom2_adjustment=True,
            mom2_update_weight=1, mom2_dataset="", mom2_n_samples=0, mom2_dtype="float32", attn_module_tmp="",
            ln_f_module=architecture.norm.name, lm_head_module=architecture.head.name,
            **{field: name.replace(f".{layer}", ".{}", 1) for field, name in names.items()},
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--settings", default="testbed", help="of AlphaEdit+: a preset or a YAML file")
    parser.add_argument("--rsft-layer", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/easyedit"))
    parser.add_argument("--easyedit", default=os.environ.get("EASYEDIT_HOME"), help="the clone  [$EASYEDIT_HOME]")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.jsonl"
    console = Console()
    settings = AlphaEditSettings.load(arguments.settings)
    clone = str(Path(arguments.easyedit).expanduser().resolve()) if arguments.easyedit else None
    if clone:
        sys.path.insert(0, clone)
    with tempfile.TemporaryDirectory(prefix="easyedit-") as folder, contextlib.chdir(folder):  # it writes logs here
        try:
            with warnings.catch_warnings(
                action="ignore", category=FutureWarning
            ):  # of the frameworks, about each other
                easyedit_ext.register()
        except CorsaError as error:
            parser.error(str(error))
        logging.disable(logging.WARNING)  # every request, and what was not edited, which is counted below
        transformers_logging.disable_progress_bar()
        bench = _prepared(settings, {"layers": [arguments.rsft_layer]}, Path(folder))
        for seed in arguments.seeds:
            for row in runs(bench, arguments.edits, seed, read_rows(path), output / "easyedit.log"):
                append_row(path, row)
                shown = ", ".join(f"{name} {100 * row[name]:.1f}" for name in COLUMNS if name in row)
                console.print(f"{row['method']}, seed {seed}: {shown}, {row['seconds']:.0f} s", soft_wrap=True)
    rows = [row for row in bench.of_these(read_rows(path), arguments.edits) if row["seed"] in arguments.seeds]
    wide = console if console.is_terminal else Console(width=160)
    wide.print(table(rows, _commit(clone)))


def _prepared(settings: AlphaEditSettings, rsft: dict[str, Any], folder: Path) -> Bench:
    bed = load_testbed()
    shutil.copytree(bed.path, folder / "llama-testbed")
    known = collect_statistics(
        bed.model,
        bed.tokenizer,
        list(facts_as_text(bed.world)),
        settings.layers,
        n_tokens=10**6,
        out=folder / "statistics",
        pack=False,
        batch_size=64,
    )
    return Bench(bed, folder, settings, known, rsft)


def runs(bench: Bench, edits: int, seed: int, earlier: Sequence[dict[str, Any]], log: Path) -> Iterator[dict[str, Any]]:
    """A row for each method that is not done yet, and one for the model before."""
    done = {row["method"] for row in bench.of_these(earlier, edits) if row["seed"] == seed}
    plan = bench.bed.world.edit_rounds(n_rounds=1, size=edits, seed=seed, untouched=N_PROBES * edits)
    for method, hparams in bench.methods().items():
        if method in done:
            continue
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            metrics = _run(hparams(plan, seed), plan, seed)
        about = {"seed": seed, "edits": edits, "settings": bench.digest}
        if UNEDITED not in done:
            done.add(UNEDITED)
            yield {"method": UNEDITED, **about, **_means(metrics, "pre"), "seconds": 0.0}
        yield {"method": method, **about, **_means(metrics, "post"), "seconds": metrics[0]["time"]}


def _run(hparams: Any, plan: EditPlan, seed: int) -> list[dict[str, Any]]:
    requests = plan.rounds[0]
    hparams.batch_size = len(requests)
    editor = importlib.import_module("easyeditor").BaseEditor.from_hparams(hparams)
    torch.manual_seed(seed)
    metrics, _, _ = editor.batch_edit(
        prompts=[request.prompt for request in requests],
        subject=[request.subject for request in requests],
        target_new=[request.target_new for request in requests],
        ground_truth=[request.target_old for request in requests],
        rephrase_prompts=[request.paraphrases[i % len(request.paraphrases)] for i, request in enumerate(requests)],
        locality_inputs=locality_inputs(plan),
        sequential_edit=True,
        verbose=False,
    )
    found: list[dict[str, Any]] = metrics
    return found


def locality_inputs(plan: EditPlan) -> dict[str, dict[str, list[list[str]]]]:
    """Probes as ``batch_edit`` wants them: of each kind a list of prompts for every request."""
    requests = plan.rounds[0]
    same: dict[str, list[EditRequest]] = {}
    for fact in plan.same_subject:
        same.setdefault(str(fact.subject), []).append(fact)
    kinds: dict[str, list[list[tuple[str, str]]]] = {
        "neighborhood": [[(probe.prompt, str(probe.answer)) for probe in r.neighborhood] for r in requests],
        "untouched": [
            [(fact.prompt, fact.target_new) for fact in plan.untouched[i * N_PROBES : (i + 1) * N_PROBES]]
            for i in range(len(requests))
        ],
        "same subject": [[(fact.prompt, fact.target_new) for fact in same[str(r.subject)]] for r in requests],
    }
    return {
        kind: {
            "prompt": [[prompt for prompt, _ in probes] for probes in by_request],
            "ground_truth": [[answer for _, answer in probes] for probes in by_request],
        }
        for kind, by_request in kinds.items()
    }


def _means(metrics: Sequence[dict[str, Any]], when: str) -> dict[str, float]:
    """As EasyEdit's summary has them: the mean over requests of the mean over a request's probes."""
    found = [metric[when] for metric in metrics]
    means = {name: _mean([_mean(one[f"{name}_acc"]) for one in found]) for name in ("rewrite", "rephrase")}
    if when == "post":  # locality compares with before
        means |= {kind: _mean([_mean(one["locality"][f"{kind}_acc"]) for one in found]) for kind in LOCALITY}
    return means


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def table(rows: Sequence[dict[str, Any]], commit: str) -> Table:
    """A row for each method: the mean over seeds with the half-width of its 95 % interval, in percent."""
    seeds = sorted({row["seed"] for row in rows})
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    found = Table(
        title=f"Testbed, one batch of {rows[0]['edits']}, seeds {seeds}; EasyEdit {commit}, {names}",
        title_style="",
        caption="AlphaEdit has the null space, contexts, steps, clamp and KL factor of AlphaEdit+, and its relative "
        f"ridge and learning rate as the absolute L2 and v_lr that they come to on the same requests; its values "
        f"stop at a loss of {STOP_LOSS:g}, for which it has no setting. Locality: tokens that are as before the edits.",
        caption_style="",
        caption_justify="left",
    )
    found.add_column("percent, mean ± 95 % over seeds")
    for heading in COLUMNS:
        found.add_column(f"locality: {heading}" if heading in LOCALITY else f"{heading}_acc", justify="right")
    found.add_column("s (time)", justify="right")
    order = [UNEDITED, *dict.fromkeys(row["method"] for row in rows if row["method"] != UNEDITED)]
    for method in order:
        chosen = [row for row in rows if row["method"] == method]
        cells = [shown([100 * float(row[key]) for row in chosen]) if key in chosen[0] else "" for key in COLUMNS]
        seconds = statistics.mean(float(row["seconds"]) for row in chosen)
        found.add_row(method, *cells, f"{seconds:.0f}" if seconds else "")
    return found


def _commit(clone: str | None) -> str:
    """Which EasyEdit: its clone has no version."""
    place = clone or next(iter(importlib.import_module("easyeditor").__path__))
    asked = subprocess.run(
        ["git", "-C", place, "log", "-1", "--format=%h of %cs"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "(not a git clone)"


if __name__ == "__main__":
    main()
