"""Everything that has to be seen on a CUDA machine, in one command: `make gpu`.

    python -m benchmarks.gpu [--part corsa] [--output runs/gpu] [--again]
    python -m benchmarks.gpu --tiny --device cpu        # every line of it on small shapes, anywhere

Nothing is downloaded: models are random weights in the shape of Llama 3.1 8B, made on the device. The parts: `tests`,
all with the mark gpu; `corsa` and `corsa-4bit`, a CoRSA step beside TRL's SFT and DPO on a bfloat16 and on a 4-bit
base; `edit`, 100 requests at five layers, twice, by AlphaEdit and AlphaEdit+; `merging`, with mergekit's --cuda and
without. Each is a process of its own with at most eight minutes. What it found is OUTPUT/PART.json; a part that has one
is not run again, so that a stopped run goes on where it was, but one that failed is. OUTPUT/table.md is the table for
RESULTS.md. Needs about 40 GiB of GPU memory, 40 GiB of disk for `corsa-4bit`, and 24 for `merging`. Exit codes: 0 all
parts ran; 1 some failed; 2 there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_parts import PARTS, Place, Row, Unavailable
from corsa_plugins.files import atomic_write_text

SECONDS = 480
PACKAGES = ("torch", "transformers", "trl", "peft", "mergekit", "bitsandbytes")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes, in this very process")
    parser.add_argument("--again", action="store_true", help="run what has results too")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    told = Console(stderr=True)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        told.print(
            "There is no CUDA device: torch.cuda.is_available() is False. Look for a torch built for CUDA "
            f"(this one is {torch.__version__}) and a driver; --tiny --device cpu tries the parts on small shapes."
        )
        return 2
    arguments.output.mkdir(parents=True, exist_ok=True)
    place = Place(arguments.device, arguments.tiny, arguments.output)
    if arguments.here:
        _run(arguments.here, place)
        return 0
    for part in arguments.part:
        if arguments.again or not _finished(arguments.output, part):
            told.print(f"{part} ...")
            _by_itself(part, arguments)
    results = {part: json.loads(_file(arguments.output, part).read_text("utf-8")) for part in arguments.part}
    table = markdown(results)
    atomic_write_text(arguments.output / "table.md", table)
    Console().print(table, markup=False, soft_wrap=True)
    return int(any("failed" in result for result in results.values()))


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of RESULTS.md, with a line above it that says where and when."""
    lines = []
    for about in dict.fromkeys(result["about"] for result in results.values()):
        lines += [about, ""]
    lines += ["| | time | beside | peak memory | |", "| --- | --- | --- | --- | --- |"]
    for part, result in results.items():
        rows: list[Row] = result.get("rows", [])
        missing = result.get("failed") or result.get("unavailable")
        if missing:
            rows = [{"what": part, "note": f"{'failed' if 'failed' in result else 'not run'}: {missing}"}]
        for row in rows:
            taken = f"{row['seconds']:.3g} s" if "seconds" in row else ""
            beside = f"{row['ratio']:.2f} x {row['beside']}" if "ratio" in row else ""
            held = f"{row['gib']:.1f} GiB" if "gib" in row else ""
            note = str(row.get("note", "")).replace("|", "/").replace("\n", " ")
            lines.append(f"| {row['what']} | {taken} | {beside} | {held} | {note} |")
    return "\n".join(lines) + "\n"


def _by_itself(part: str, arguments: argparse.Namespace) -> None:
    """Run a part in a process of its own, small ones here; a failure is its result."""
    if arguments.tiny:
        try:
            _run(part, Place(arguments.device, True, arguments.output))
        except Exception as error:
            logging.getLogger(__name__).debug("%s", traceback.format_exc())
            _note(arguments.output, part, {"failed": f"{type(error).__name__}: {error}"})
        return
    command = [sys.executable, "-m", "benchmarks.gpu", "--here", part, "--output", str(arguments.output)]
    try:
        ended = subprocess.run(
            [*command, "--device", arguments.device], timeout=SECONDS, stderr=subprocess.PIPE, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        _note(arguments.output, part, {"failed": f"not done after {SECONDS} seconds"})
        return
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        _file(arguments.output, part).with_suffix(".log").write_text(ended.stderr, "utf-8")
        _note(arguments.output, part, {"failed": (lines or [f"exit code {ended.returncode}"])[-1]})


def _run(part: str, place: Place) -> None:
    try:
        result: dict[str, Any] = {"rows": PARTS[part](place)}
    except Unavailable as error:
        result = {"unavailable": str(error)}
    _note(place.folder, part, result)


def _note(folder: Path, part: str, result: Mapping[str, Any]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about = f"{datetime.now(UTC):%Y-%m-%d} · `python -m benchmarks.gpu` · {device} · {', '.join(_versions())}"
    atomic_write_text(_file(folder, part), json.dumps({"part": part, "about": about, **result}, indent=2) + "\n")


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _finished(folder: Path, part: str) -> bool:
    path = _file(folder, part)
    return path.exists() and "rows" in json.loads(path.read_text("utf-8"))


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


if __name__ == "__main__":
    sys.exit(main())
