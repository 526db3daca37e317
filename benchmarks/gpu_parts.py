"""The parts of :mod:`benchmarks.gpu`: each runs by itself, makes what it needs, and gives rows of figures."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from benchmarks.cost import VARIANTS, make_step
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, KeyStatistics, NullSpaceRule, ValueSettings
from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, MemoryVectors
from corsa_plugins.merging.recipe import delta_recipe
from corsa_plugins.model.quantised import keep_layout
from corsa_plugins.testbed import load_testbed

__all__ = ["PARTS", "Place", "Row", "Unavailable"]

Row = dict[str, Any]
"""``what`` was run, ``seconds``, ``beside`` what it is compared with and the ``ratio`` to it, ``gib`` at most, a
``note``; all but the first may be missing."""


class Unavailable(Exception):
    """A part cannot run here; the message says what it needs."""


@dataclass(frozen=True)
class Place:
    """Where and how large.

    Attributes:
        device: ``"cuda"`` or ``"cpu"``.
        tiny: Small shapes and few repeats, to see that every line runs.
        folder: For what has to be on disk.
    """

    device: str
    tiny: bool
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def model(self, layers: int = 32) -> Any:
        """Random weights in the shape of Llama 3.1 8B, on the device; tiny, of two small blocks."""
        common: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        if self.tiny:
            config = LlamaConfig(
                vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
                num_key_value_heads=2, **common,
            )  # fmt: skip
        else:
            config = LlamaConfig(
                vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
                num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5,
                rope_theta=500000.0, **common,
            )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()

    def synchronised(self) -> float:
        """The time, with nothing left to do on the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def peak(self, row: Row) -> Iterator[None]:
        """Within the block the largest memory of the GPU is measured, model and all."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.device == "cuda":
            row["gib"] = torch.cuda.max_memory_allocated() / 2**30


def tests(place: Place) -> list[Row]:
    """Every test with the mark ``gpu``."""
    root = Path(__file__).resolve().parents[1]
    files = [path for path in sorted((root / "tests").rglob("test_*.py")) if "mark" + ".gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *map(str, files)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = (ended.stdout.strip().splitlines() or [ended.stderr.strip()])[-1]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    said = ", ".join([last.strip("= "), *failed])
    if ended.returncode:
        raise RuntimeError(said)
    return [{"what": f"pytest -m gpu, {len(files)} files", "note": said}]


def corsa(place: Place) -> list[Row]:
    """A micro-batch of CoRSA beside TRL's trainers, in bfloat16."""
    return _steps(place, place.model(), "")


def corsa_4bit(place: Place) -> list[Row]:
    """The same on a base in 4 bits, which is written and loaded as users load one."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Unavailable("pip install bitsandbytes")
    layers = 32
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        model = place.model(layers)
        model.save_pretrained(folder, max_shard_size="2GB")
        del model
        _collect()
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=place.dtype, bnb_4bit_quant_type="nf4")
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=four, device_map={"": place.device}, dtype=place.dtype
        )
        keep_layout(loaded)  # on a CPU; TRL's own trainers run it before they train
        return _steps(place, loaded, ", base in 4 bits")


def _steps(place: Place, model: Any, about: str) -> list[Row]:
    tokenizer = load_testbed().tokenizer
    prompt, repeats = (12, 1) if place.tiny else (42, 5)
    names = [*VARIANTS[:2], "CoRSA", "CoRSA, pcgrad: false", "CoRSA without SAM"]
    steps = {name: make_step(model, tokenizer, prompt, name, place.device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, Row] = {name: {"what": f"{name}, prompts of {prompt} tokens{about}"} for name in names}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            with place.peak(rows[name]):
                start = place.synchronised()
                step()
                taken = place.synchronised() - start
            if repeat:  # the first one warms up
                seconds[name].append(taken)
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
        to_dpo = [a / b for a, b in zip(seconds[name], seconds[names[1]], strict=True)]
        row |= {"seconds": statistics.median(seconds[name]), "beside": names[0], "ratio": statistics.median(ratios)}
        row["note"] = f"{statistics.median(to_dpo):.2f} x TRL's DPO"
    return list(rows.values())


@dataclass(frozen=True)
class _AxisStatistics:
    """Keys whose principal directions are the features themselves: no decomposition of a large matrix is needed."""

    values: Tensor

    @property
    def width(self) -> int:
        return len(self.values)

    @property
    def count(self) -> int:
        return 10 * len(self.values)

    @property
    def taken(self) -> tuple[int, ...]:
        return ()  # no experts

    def moment(self) -> Tensor:
        return torch.diag(self.values)

    def sample(self) -> Tensor | None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.width, 64, generator=generator) * self.values.sqrt().float()[:, None]

    def basis(self) -> Eigenbasis:
        return Eigenbasis(self.values, MemoryVectors(torch.eye(self.width)))


def edit(place: Place) -> list[Row]:
    """100 requests at five layers by AlphaEdit and AlphaEdit+, each on the model as it came."""
    model, bed = place.model(), load_testbed()
    tokenizer: Any = bed.tokenizer
    layers = (1, 2) if place.tiny else (4, 5, 6, 7, 8)
    n, steps = (2, 3) if place.tiny else (100, 25)
    requests = bed.world.edit_rounds(n_rounds=2, size=n, seed=0, untouched=0).rounds
    width = model.config.intermediate_size
    known = KeyStatistics(dict.fromkeys(layers, _AxisStatistics(torch.linspace(1e-6, 1, width).double() ** 4)))
    plus = AlphaEditSettings(
        layers=layers, null_space=NullSpaceRule("share", 0.8), values=ValueSettings(steps=steps, stop_loss=0.0)
    )
    rows: list[Row] = []
    for name, settings in (("AlphaEdit", plus.alphaedit()), ("AlphaEdit+", plus)):
        editor = AlphaEditor(model, tokenizer, known, settings)
        for number, batch in enumerate(requests):
            row: Row = {
                "what": f"{name}: {n} requests at {len(layers)} layers, {'second' if number else 'first'} batch"
            }
            with place.peak(row):
                start = place.synchronised()
                editor.edit(batch, name=str(number), answers=False)
                row["seconds"] = place.synchronised() - start
            rows.append(row)
        for number in reversed(range(len(requests))):
            editor.revert(str(number))
        _collect()
    for plain, ours in zip(rows[:2], rows[2:], strict=True):
        ours |= {"beside": "AlphaEdit", "ratio": ours["seconds"] / plain["seconds"]}
    return rows


def merging(place: Place) -> list[Row]:
    """A merge with mergekit's `--cuda` beside one without, from disk to disk; the outputs are compared."""
    if importlib.util.find_spec("mergekit") is None:
        raise Unavailable("pip install 'corsa-plugins[mergekit]'")
    import yaml
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    from mergekit_ext.merging import merge_recipe

    model = place.model(layers=4)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=place.folder) as name:
        folder = Path(name)
        model.save_pretrained(folder / "base", max_shard_size="2GB")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=2e-3)
        model.save_pretrained(folder / "edited", max_shard_size="2GB")
        size = sum(parameter.nbytes for parameter in model.parameters())
        del model
        _collect()
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(delta_recipe(str(folder / "base"), str(folder / "edited"), 0.8, 0.2)), "utf-8")
        for cuda in (False, True) if place.device == "cuda" else (False, False):
            out = folder / f"out-{len(rows)}"
            row: Row = {"what": f"merging {size / 2**30:.2f} GiB, {'--cuda' if cuda else 'on the CPU'}"}
            with place.peak(row), contextlib.redirect_stderr(io.StringIO()):
                start = place.synchronised()
                merge_recipe(recipe, out, MergeOptions(cuda=cuda, copy_tokenizer=False))
                row["seconds"] = place.synchronised() - start
            row["note"] = f"{3 * size / 2**30 / row['seconds']:.2f} GiB/s read and written"
            rows.append(row)
        for path in sorted((folder / "out-0").glob("*.safetensors")):
            other = load_file(folder / "out-1" / path.name)
            different = [key for key, tensor in load_file(path).items() if not torch.equal(tensor, other[key])]
            if different:
                raise RuntimeError(f"merged on the GPU, {', '.join(different[:3])} differ from what the CPU gives")
    rows[1] |= {"beside": "the CPU", "ratio": rows[1]["seconds"] / rows[0]["seconds"]}
    return rows


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Place], list[Row]]] = {
    "tests": tests,
    "corsa": corsa,
    "corsa-4bit": corsa_4bit,
    "edit": edit,
    "merging": merging,
}
