"""What the values of options mean: blocks, numbers, folders, a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from corsa_plugins.sandbox import Guarantee

__all__ = ["check_folder", "load", "parse_guarantees", "parse_layers", "parse_numbers", "parse_tokens"]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Block numbers from ``"4,5,6"``, ``"4-8"`` or both, in ascending order; ``None`` of nothing.

    Raises:
        SettingError: It is neither.
    """
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
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
    if number < 1 or number != round(number):
        raise SettingError(f"tokens are {text!r}: write a number such as 500000, 100k or 1M")
    return round(number)


def check_folder(output: Path | None) -> None:
    """Refuse a file where results need a folder, before there are any.

    Raises:
        NotADirectoryError: It is a file.
    """
    if output and output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder for the results")


def load(model: str, device: str | None, dtype: str, quiet: bool) -> Any:
    """The model of ``--model``, ``--device`` and ``--dtype`` with its tokenizer; ``--quiet``: without bars."""
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.model.loading import load_model

    if quiet:
        disable_progress_bar()
    return load_model(model, device=device, dtype=dtype)
