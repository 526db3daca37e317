"""Runs that are killed at any moment and started again, each by one command in a process of its own."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.forks import forks

ASKED = "--max-new-tokens 4 --device cpu -q"
ALPHAEDIT = "-m @/model -s @/stats --device cpu -q"
TRAIN = (
    "train --model_name_or_path @/model --use_cpu true --bf16 false --report_to none --disable_tqdm true "
    "--gradient_checkpointing false --per_device_train_batch_size 1 --gradient_accumulation_steps 1 "
    "--num_train_epochs 3 --learning_rate 1e-2 --lora_r 2 --optim adamw_torch --save_strategy steps --save_steps 1 "
    "--resume_from_checkpoint true"
)
COMMANDS = {
    "merge": ["merge @/recipe.yaml OUT/merged --quiet"],
    "stats": [
        "stats -m @/model --text @/text.txt --layers 0-1 --tokens 6k --batch-size 2 --device cpu -q -o OUT/stats"
    ],
    "edit": [f"edit {ALPHAEDIT} -r @/requests.jsonl --settings @/alphaedit.yaml -o OUT/edited"],
    "rsft": ["edit -m @/model -r @/requests.jsonl --method rsft --settings @/rsft.yaml --device cpu -q -o OUT/edited"],
    "sequential": [
        f"protocol batches --batches COUNT -r @/sequential.jsonl {ALPHAEDIT} --max-new-tokens 4 --method alphaedit+ "
        "--settings alphaedit+=@/quick.yaml -o OUT/run"
    ],
    "protocol": [
        f"protocol stream -m @/model -r @/round-1.jsonl -r @/round-2.jsonl {ASKED} --method rsft "
        "--settings rsft=@/rsft.yaml -o OUT/run"
    ],
    "sweep": [
        "merge-sweep --base @/model --edited @/other --weights '0.5 1' --densities '0.2 0.6' --no-plot "
        f"-r @/requests.jsonl --untouched @/untouched.jsonl {ASKED} -o OUT"
    ],
    "export": ["export @/edited -a OUT/adapter -q"],
    "evaluation": [f"evaluate -m @/model -r @/requests.jsonl --batch-size 1 {ASKED} -o OUT/results"],
    "training": [
        f"{TRAIN} --requests @/round-1.jsonl --output_dir OUT/1",
        f"{TRAIN} --requests @/round-2.jsonl --adapter OUT/1 --output_dir OUT/2",
        f"{TRAIN} --requests @/round-3.jsonl --adapter OUT/2 --output_dir OUT/3",
    ],
    "rounds": [
        f"protocol stream -m @/model -r @/round-1.jsonl -r @/round-2.jsonl -r @/round-3.jsonl {ASKED} --method corsa "
        "--settings corsa=@/corsa.yaml -o OUT/run"
    ],
    "demo": ["demo --size 2 --method alphaedit+ --jobs 1 -o OUT/demo"],
}  # fmt: skip
"""By kind: the words of a command, or of several that follow each other as with ``&&``. @ are the inputs."""

WHOLE = {
    "merge": "is not empty: name a new folder, or remove this one first",
    "edit": "exists and is not an empty folder: name a new one",
    "rsft": "exists and is not an empty folder: name a new one",
    "export": "is not empty: name a new folder, or remove this one first",
    "stats": "holds finished statistics",
    "statistics": "holds finished statistics",
}
"""What kinds say, and exit with 2, where what they were to make is there already; the others go through it again."""


class Run(NamedTuple):
    """What became of a run.

    Attributes:
        seconds: That it took, or lived.
        killed: Whether the kill hit a living process: one that came too late shows nothing.
        code: Its exit code.
        said: What it wrote to standard error.
    """

    seconds: float
    killed: bool
    code: int
    said: str


Work = Callable[[Path, Path], None]


def words(kind: str, inputs: Path, out: Path) -> list[list[str]]:
    """The arguments of a kind's commands: the same ones for the same output."""
    count = str(sum(1 for _ in (inputs / "sequential.jsonl").open()))
    values = {"@": str(inputs), "OUT": str(out), "COUNT": count}
    lines = [shlex.split(line) for line in COMMANDS[kind]]
    for name, value in values.items():
        lines = [[word.replace(name, value) for word in line] for line in lines]
    return lines


def command(kind: str, inputs: Path, out: Path) -> None:
    """The commands of a kind, until one fails, which ends the process with its exit code."""
    from corsa_plugins.cli.app import main

    _quiet()
    for line in words(kind, inputs, out):
        try:
            main(line)
        except SystemExit as stop:
            if stop.code:
                raise


def statistics(inputs: Path, out: Path) -> None:
    """Statistics in ``out/stats``, kept after every batch, which the command does every five minutes."""
    from corsa_plugins.alphaedit.statistics.collect import collect_statistics
    from corsa_plugins.model.loading import load_model

    _quiet()
    model, tokenizer = load_model(inputs / "model", device="cpu")
    settings = {"n_tokens": 6000, "batch_size": 2, "sample_size": 32, "checkpoint_seconds": 0}
    collect_statistics(model, tokenizer, str(inputs / "text.txt"), (0, 1), out=out / "stats", **settings)


def _quiet() -> None:
    import torch

    os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)


def run(work: Work, inputs: Path, out: Path, kill_after: float | None = None) -> Run:
    """The work in a process of its own, killed after so many seconds if it is not done by then."""
    said = inputs.parent / "said.txt"
    start = time.monotonic()
    process = forks().Process(target=_telling, args=(work, inputs, out, said))
    process.start()
    process.join(kill_after)
    killed = process.is_alive()
    if killed:
        process.kill()
        process.join()
        killed = process.exitcode == -signal.SIGKILL  # it may have come to its end between the two
    return Run(time.monotonic() - start, killed, process.exitcode or 0, said.read_text() if said.exists() else "")


def script(kind: str, inputs: Path, out: Path) -> Run:
    """The commands of a kind as a shell has them: each a Python that begins with nothing."""
    start = time.monotonic()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    for line in words(kind, inputs, out):
        call = [sys.executable, "-m", "corsa_plugins.cli", *line]
        done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=inputs)
        if done.returncode:
            break
    return Run(time.monotonic() - start, False, done.returncode, done.stderr)


def _telling(work: Work, inputs: Path, out: Path, said: Path) -> None:
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    work(inputs, out)


def without_room(work: Work, size: int, inputs: Path, out: Path) -> None:
    """The work where no file can be larger than ``size`` bytes; what it raises is an exit code of 2, and is told."""
    from corsa_plugins.errors import CorsaError
    from tests.support.disk import no_file_larger_than

    try:
        with no_file_larger_than(size):
            work(inputs, out)
    except (CorsaError, OSError) as error:
        sys.exit(f"{error}")


def on_a_small_disk(work: Work, size: int, kept: Path, inputs: Path, out: Path) -> None:
    """The work on a disk of ``size`` bytes that has nothing else on it, and again once there is room.

    Args:
        work: To be done.
        size: Of the disk in the place of ``out``'s parent, of which none but this process know.
        kept: Gets ``first.json`` with the exit code and what was said of the first time, and what was hidden or
            half-written after it; ``second.json`` likewise; and a copy of what is on the disk in the end.
        inputs: Of the work.
        out: Of the work.
    """
    from tests.support.disk import own_mounts, resize, small_disk

    own_mounts()
    small_disk(out.parent, size)
    for name in ("first", "second"):
        said = kept / "said.txt"
        if (pid := os.fork()) == 0:
            try:
                _telling(work, inputs, out, said)
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = [path.name for path in out.parent.rglob("*") if path.suffix in (".part", ".new", ".old")]
        (kept / f"{name}.json").write_text(json.dumps({"code": code, "said": said.read_text(), "left": left}))
        resize(out.parent, 1 << 30)
    shutil.copytree(out, kept / "out")


def moments(seconds: float, seed: str) -> Iterator[float]:
    """When to kill, at random within a run that takes so long, the same each time; without end."""
    draw = random.Random(seed)
    while True:
        yield draw.uniform(0, seconds)
