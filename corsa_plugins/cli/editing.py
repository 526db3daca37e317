"""What the commands that edit share: which settings, which state, which model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from corsa_plugins.errors import SettingError

__all__ = ["STATE", "edit_settings", "load_quietly", "state_folder"]

STATE = "state"


def edit_settings(name: str | None, layers: str | None, method: str, earlier: Any) -> Any:
    from corsa_plugins.alphaedit import AlphaEditSettings

    if method not in ("alphaedit+", "alphaedit"):
        raise SettingError(f"method is {method!r}: choose alphaedit+ or alphaedit")
    numbers = None
    if layers is not None:
        try:
            numbers = tuple(int(number) for number in layers.split(","))
        except ValueError:
            raise SettingError(f"layers is {layers!r}: give numbers such as 4,5,6") from None
    if name is not None:
        chosen = AlphaEditSettings.load(name)
        chosen = replace(chosen, layers=numbers) if numbers else chosen
    elif numbers:
        chosen = AlphaEditSettings(layers=numbers)
    elif earlier is not None and earlier.batches:
        chosen = earlier.batches[-1].settings
    else:
        raise SettingError("which layers? give --layers, or --settings with a YAML file or a preset")
    return chosen.alphaedit() if method == "alphaedit" else chosen


def state_folder(path: Path) -> Path:
    """The state in a folder that ``corsa edit`` wrote, or that is one."""
    return path / STATE if (path / STATE).is_dir() else path


def load_quietly(model: str, device: str | None, dtype: str, quiet: bool) -> Any:
    from transformers.utils.logging import disable_progress_bar

    from corsa_plugins.model.loading import load_model

    if quiet:
        disable_progress_bar()
    return load_model(model, device=device, dtype=dtype)
