"""A whole edit beside EasyEdit's own AlphaEdit and MEMIT: time, floating point operations and peak memory.

    python -m benchmarks.whole_edit --easyedit ~/EasyEdit [--model FOLDER] [--edits FILE] [--requests 4]

The algorithms of EasyEdit are the files of a clone, which are imported by themselves: none of EasyEdit's other
requirements is needed. Without ``--model``, random weights in the shape of GPT-2 small and facts of the testbed. All
edit the same requests at the same layers with the same steps, rate and clamp, each with contexts of its own making and
nothing kept from an earlier edit, and hold the same null space; the search for values ends at a loss of 0.05 with all.
Every repeat runs all of them one after the other. Operations are counted by torch over one edit, the way back
included. Peak memory is what a process of its own holds beyond model and statistics, which are drawn at
random.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from benchmarks.memory import high_water, marked_from_here
from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    KeyStatistics,
    NullSpaceRule,
    SmoothingSettings,
    ValueSettings,
)
from corsa_plugins.alphaedit.statistics.layer import MomentStatistics
from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.testbed import load_testbed

THEIRS = "EasyEdit's AlphaEdit"
GPT2 = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
    "model_name": "gpt2-xl",
}
LLAMA = {
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "model.embed_tokens",
    "model_name": "llama",
}


@dataclass
class Bench:
    model: Any
    tokenizer: Any
    known: KeyStatistics
    requests: list[EditRequest]
    settings: AlphaEditSettings
    easyedit: Path | None

    @classmethod
    def build(cls, arguments: argparse.Namespace) -> Bench:
        bed = load_testbed()
        tokenizer: Any = bed.tokenizer
        torch.manual_seed(0)
        if arguments.model:
            tokenizer = AutoTokenizer.from_pretrained(arguments.model)
            model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        else:
            model = GPT2LMHeadModel(GPT2Config(vocab_size=50257)).eval()
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        if arguments.edits:
            requests = list(read_requests(arguments.edits))[: arguments.requests]
        else:
            requests = bed.world.edit_rounds(n_rounds=1, size=arguments.requests, seed=0, untouched=0).rounds[0]
        settings = AlphaEditSettings(
            layers=tuple(arguments.layers),
            null_space=NullSpaceRule("share", 0.7),
            values=ValueSettings(steps=arguments.steps, lr=0.1),
            ridge=1.0,
            smoothing=SmoothingSettings(),
        )
        known = _statistics(settings.layers, find_architecture(model).ffn(settings.layers[0]).down.d_in)
        for layer in settings.layers:
            known.null_space(layer, settings.null_space)  # eigenvectors are no part of an edit
        return cls(model, tokenizer, known, list(requests), settings, arguments.easyedit)


def _statistics(layers: Sequence[int], d: int) -> KeyStatistics:
    """Of keys that have half of their energy in a tenth of the directions, the same for every layer."""
    keys = torch.randn(d, 2 * d) * torch.linspace(0.2, 1, d)[:, None] ** 4
    of_all = MomentStatistics((keys.double() @ keys.double().T) / keys.shape[1], keys.shape[1], keys[:, :512])
    return KeyStatistics(dict.fromkeys(layers, of_all))


def ours(bench: Bench, settings: AlphaEditSettings) -> Callable[[], Any]:
    return lambda: AlphaEditor(bench.model, bench.tokenizer, bench.known, settings).edit(bench.requests, answers=False)


def theirs(bench: Bench, algorithm: str) -> Callable[[], Any]:
    """The published function with everything that it keeps in its module begun anew."""
    if bench.easyedit is None:
        raise SystemExit("--easyedit: name a clone of EasyEdit")
    settings, values, model = bench.settings, bench.settings.values, bench.model
    module = _their_module(bench.easyedit, f"{algorithm}.{'AlphaEdit' if algorithm == 'alphaedit' else algorithm}_main")
    folder = Path(tempfile.mkdtemp(prefix="whole-edit-"))
    projectors, moments = [], {}
    for layer in settings.layers:
        space = bench.known.null_space(layer, settings.null_space)
        basis = space.coordinates(torch.eye(space.d, dtype=torch.float64), space.n_null)
        projectors.append((basis.T @ basis).float())
        moments[layer] = bench.known.moment(layer).float()
    torch.save(torch.stack(projectors), folder / "null_space_project.pt")
    module.get_cov = lambda model, tok, name, *args, **kwargs: moments[int("".join(filter(str.isdigit, name)))]
    names = GPT2 if model.config.model_type == "gpt2" else LLAMA
    hparams = types.SimpleNamespace(
        **names, layers=list(settings.layers), fact_token="subject_last", v_num_grad_steps=values.steps, v_lr=values.lr,
        v_loss_layer=len(find_architecture(model).blocks) - 1, v_weight_decay=values.weight_decay,
        clamp_norm_factor=values.clamp, kl_factor=values.kl_factor, L2=settings.ridge, mom2_update_weight=15000,
        mom2_adjustment=True, mom2_dataset="none", mom2_n_samples=1, mom2_dtype="float32", device="cpu",
        P_loc=str(folder / "null_space_project.pt"),
    )  # fmt: skip
    requests = [
        {"prompt": one.prompt, "subject": one.subject, "target_new": one.target_new, "case_id": number}
        for number, one in enumerate(bench.requests)
    ]
    apply = module.apply_AlphaEdit_to_model if algorithm == "alphaedit" else module.apply_memit_to_model

    def edit() -> Any:
        module.P_loaded = module.cache_c_new = False
        module.CONTEXT_TEMPLATES_CACHE = None
        with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
            return apply(model, bench.tokenizer, requests, hparams)

    return edit


def _their_module(clone: Path, name: str) -> Any:
    """A module of EasyEdit's, without what its packages import beside it."""
    for package in ("easyeditor", "easyeditor.models", "easyeditor.util", "easyeditor.models.rome"):
        if package not in sys.modules:
            stub = types.ModuleType(package)
            stub.__path__ = [str(clone.joinpath(*package.split(".")))]
            sys.modules[package] = stub
    return importlib.import_module(f"easyeditor.models.{name}")


METHODS: dict[str, Callable[[Bench], Callable[[], Any]]] = {
    THEIRS: lambda bench: theirs(bench, "alphaedit"),
    "EasyEdit's MEMIT": lambda bench: theirs(bench, "memit"),
    "AlphaEdit": lambda bench: ours(bench, bench.settings.alphaedit()),
    "AlphaEdit+": lambda bench: ours(bench, bench.settings),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--easyedit", type=Path, help="a clone of EasyEdit")
    parser.add_argument("--model", help="a folder; by default random weights in the shape of GPT-2 small")
    parser.add_argument("--edits", help="requests as JSONL; by default facts of the testbed")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--count", choices=METHODS, help="operations and peak memory of one method, as JSON")
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(given)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    bench = Bench.build(arguments)
    if arguments.count:
        print(json.dumps(_counted(METHODS[arguments.count](bench))))  # noqa: T201
        return
    edits = {name: METHODS[name](bench) for name in arguments.only}
    original = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    seconds: dict[str, list[float]] = {name: [] for name in edits}
    for _ in range(arguments.repeats):
        for name, edit in edits.items():
            start = time.process_time()
            edit()
            seconds[name].append(time.process_time() - start)
            bench.model.load_state_dict(original)
    counts = {name: _count(name, given) for name in edits}
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(_table(seconds, counts, bench, arguments))


def _count(name: str, given: Sequence[str]) -> dict[str, Any]:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", "benchmarks.whole_edit", *given, "--count", name]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    counts: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return counts


def _counted(edit: Callable[[], Any]) -> dict[str, int | None]:
    """Of one edit; memory in bytes, where Linux tells."""
    try:
        before: int | None = marked_from_here()
    except OSError:
        before = None
    with FlopCounterMode(display=False) as counter:
        edit()
    return {
        "operations": counter.get_total_flops(),
        "bytes": None if before is None else high_water() - before,
    }


def _table(
    seconds: dict[str, list[float]], counts: dict[str, dict[str, Any]], bench: Bench, arguments: argparse.Namespace
) -> Table:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    table = Table(
        title=f"{len(bench.requests)} requests at {len(arguments.layers)} layers of "
        f"{len(find_architecture(bench.model).blocks)}, {bench.model.num_parameters() / 1e6:.0f} M parameters, at most "
        f"{arguments.steps} steps; one CPU thread, processor time; {names}; medians of {arguments.repeats}",
        title_style="",
    )
    base = next(iter(seconds))
    for heading in ("", "time", f"to {base}", "range", "operations", "of its", "peak memory", "of its"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[base], strict=True)]
        row = [f"{statistics.median(values):.1f} s", f"{statistics.median(ratios):.3f} x"]
        row.append(f"{min(ratios):.3f} - {max(ratios):.3f}")
        row += [f"{counts[name]['operations'] / 1e9:.0f} G", _ratio(counts, name, base, "operations")]
        held = counts[name]["bytes"]
        row += ["" if held is None else f"{held / 2**20:.0f} MiB", _ratio(counts, name, base, "bytes")]
        table.add_row(name, *row)
    return table


def _ratio(counts: dict[str, dict[str, Any]], name: str, base: str, what: str) -> str:
    values: tuple[Tensor | int | None, ...] = (counts[name][what], counts[base][what])
    return "" if None in values else f"{values[0] / values[1]:.3f} x"  # type: ignore[operator]


if __name__ == "__main__":
    main()
