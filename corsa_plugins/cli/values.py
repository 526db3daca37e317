"""What the values of options mean: blocks, numbers, folders, a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import SettingError
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from corsa_plugins.model.placement import Where
    from corsa_plugins.model.processes import Processes
    from corsa_plugins.sandbox import Guarantee

__all__ = [
    "check_folder",
    "check_results",
    "check_unread",
    "load",
    "parse_device_map",
    "parse_guarantees",
    "parse_layers",
    "parse_max_memory",
    "parse_numbers",
    "parse_tokens",
    "place",
    "place_one",
]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Block numbers from ``"4,5,6"``, ``"4-8"`` or both, in ascending order; ``None`` of nothing.

    Raises:
        SettingError: It is neither.
    """
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise SettingError(f"layers is {text!r}: give numbers such as 4,5,6 or a range such as 4-8")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def parse_numbers(text: str, option: str) -> list[float]:
    """Numbers separated by spaces or commas.

    Raises:
        SettingError: There are none, or something else is among them; ``option`` is named.
    """
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise SettingError(f"{option} is {text!r}: {error}; write numbers, as in '0.5 0.5'") from None
    if not numbers:
        raise SettingError(f"{option} is empty: write numbers, as in '0.5 0.5'")
    return numbers


def parse_guarantees(text: str) -> list[Guarantee]:
    """Promises of the sandbox from ``"network,files"``.

    Raises:
        SettingError: One is none of them.
    """
    from corsa_plugins.sandbox import Guarantee

    known = {guarantee.value: guarantee for guarantee in Guarantee}
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in known:
            raise SettingError(f"--unenforced names {name!r}: the promises are {', '.join(known)}")
    return [known[name] for name in names]


_MOST_TOKENS = 2**53
"""From here on floats leave out whole numbers."""


def parse_tokens(text: str) -> int:
    """A number of tokens from ``"500000"``, ``"500_000"``, ``"100k"``, ``"2.5M"`` or ``"1B"``.

    Raises:
        SettingError: It is no such number, or not a whole and positive one.
    """
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kKmMbBgG]?)\s*", text)
    number = 0.0
    if match is not None:
        factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}[match[2].lower()]
        number = float(match[1].replace("_", "")) * factor
    if not 1 <= number < _MOST_TOKENS or number != round(number):
        raise SettingError(f"tokens are {text!r}: write a number such as 500000, 100k or 1M")
    return round(number)


def check_folder(output: Path | None) -> None:
    """Refuse a file where results need a folder, before there are any.

    Raises:
        NotADirectoryError: It is a file.
    """
    if output and output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder for the results")


_RESULTS = {
    "corsa evaluate": ("summary.json", "records.jsonl", "unfinished.jsonl"),
    "corsa evaluate-adapters": ("routes.jsonl", "routing.json"),
    "corsa protocol": ("*/run.json",),  # and of corsa demo
}
"""What a folder holds that a command with a page has written to."""


def check_results(output: Path | None, command: str) -> None:
    """As :func:`check_folder`, of a command that writes a page, ``report.html``, which is not to replace another's.

    Raises:
        NotADirectoryError: It is a file.
        SettingError: It holds the page and results of another command, and none of this one.
    """
    check_folder(output)
    if output is None or not (output / "report.html").is_file():
        return
    there = {name: file for name, globs in _RESULTS.items() for glob in globs for file in output.glob(glob)}
    other = next((name for name in there if name != command), None)
    if other is not None and command not in there:
        raise SettingError(
            f"--output {output} holds results of {other} ({there[other].relative_to(output)}), whose report.html "
            "would be replaced: name another folder"
        )


def check_unread(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over a file that the same command reads.

    Raises:
        SettingError: One is.
    """
    read = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in read:
            raise SettingError(f"{output} is a file that is read: name another one to write")


def parse_device_map(text: str) -> str | dict[str, int | str]:
    """A device map from ``"auto"`` and its like, from JSON as in ``'{"model.layers.0": "cpu", "": 0}'``, or from a file
    of it.

    Raises:
        SettingError: It is none of them.
    """
    from corsa_plugins.model.placement import AUTOMATIC

    if text in AUTOMATIC:
        return text
    content = text
    if not text.lstrip().startswith("{"):
        try:
            content = user_path(text).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise SettingError(
                f"--device-map is {text!r}: choose one of {', '.join(AUTOMATIC)}, or give JSON or a file of it, by "
                'module: {"model.layers.0": "cpu", ...}'
            ) from None
    try:
        read = json_value(content)
        named = {str(name): _device_in_map(device) for name, device in read.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise SettingError(f"--device-map {text}: {error}; give an object of modules and devices") from None
    return named


def _device_in_map(device: Any) -> int | str:
    if isinstance(device, bool) or not isinstance(device, int | str):
        raise TypeError(f"{device!r} is no device")
    return int(device) if isinstance(device, str) and device.isdigit() else device


_LIMIT = re.compile(r"\s*([0-9]{1,4}|cpu|mps)\s*=\s*([0-9]{1,18}(?:\.[0-9]+)?\s*(?:[KMGT]i?B)?)\s*", re.IGNORECASE)


def parse_max_memory(text: str) -> dict[int | str, int | str]:
    """Limits from ``"0=20GiB,cpu=60GiB"``.

    Raises:
        SettingError: It is of no such form.
    """
    limits: dict[int | str, int | str] = {}
    for part in text.split(","):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise SettingError(f"--max-memory is {text!r}: write it by device, as in 0=20GiB,cpu=60GiB")
        amount = match[2].replace(" ", "")
        device = match[1].lower()
        limits[int(device) if device.isdigit() else device] = int(amount) if amount.isdigit() else amount
    return limits


def place(device: str | None, device_map: str | None, max_memory: str | None) -> Where:
    """Where a model goes: what ``--device`` says, or ``--device-map`` and ``--max-memory``.

    Raises:
        SettingError: Both, or one that cannot be read.
    """
    if device_map is None and max_memory is None:
        return device
    from corsa_plugins.model.placement import Placement

    if device is not None:
        raise SettingError(f"--device {device} and --device-map: give one; a device map says where every part goes")
    limits = None if max_memory is None else parse_max_memory(max_memory)
    return Placement(parse_device_map(device_map or "auto"), limits)


def place_one(
    processes: Processes, device: str | None, device_map: str | None = None, max_memory: str | None = None
) -> Where:
    """As :func:`place`, for one of the processes that share work: by default each has a GPU of its own.

    Raises:
        SettingError: Likewise; or a device map, which is of one process.
    """
    from corsa_plugins.model.processes import device_of_process

    if processes.count > 1 and device_map is not None:
        raise SettingError(
            f"--device-map {device_map} with {processes.count} processes: a map is of one process; leave it out, or "
            "run the command without a launcher"
        )
    return place(device, device_map, max_memory) or device_of_process(processes)


def load(model: str, where: Where, dtype: str, quiet: bool) -> Any:
    """The model of ``--model``, at its :func:`place`, in ``--dtype``, with its tokenizer; ``--quiet``: without bars."""
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.model.loading import load_model

    if quiet:
        disable_progress_bar()
    return load_model(model, device=where, dtype=dtype)
