"""What the commands that edit share: which settings, which state, which model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from corsa_plugins.cli.options import load as load_quietly
from corsa_plugins.cli.options import parse_layers
from corsa_plugins.errors import SettingError

__all__ = ["STATE", "edit_settings", "load_quietly", "state_folder"]

STATE = "state"


def edit_settings(name: str | None, layers: str | None, method: str, earlier: Any) -> Any:
    """The settings that ``--settings``, ``--layers`` and ``--method`` mean; else those of the last batch in force.

    Args:
        name: A YAML file or a preset.
        layers: In place of the settings' own.
        method: ``alphaedit+``, or ``alphaedit``, the same with its three parts off.
        earlier: The edits in force, if there are any.

    Raises:
        SettingError: None of them says which layers, or one of them cannot be understood.
    """
    from corsa_plugins.alphaedit import AlphaEditSettings

    if method not in ("alphaedit+", "alphaedit"):
        raise SettingError(f"method is {method!r}: choose alphaedit+ or alphaedit")
    numbers = parse_layers(layers)
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
