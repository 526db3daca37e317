"""A method's settings from a YAML file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from corsa_plugins.errors import SettingError

__all__ = ["read_settings"]


def read_settings(path: str | os.PathLike[str], known: Collection[str]) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file.
        known: The names it may have.

    Raises:
        SettingError: There is no such file, or it holds no mapping, or other names; the message names the file.
    """
    import yaml

    file = Path(path).expanduser()
    if not file.is_file():
        raise SettingError(f"settings {os.fspath(path)}: no such file (looked in {Path.cwd()}): name a YAML file")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"settings {file} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingError(f"settings {file}: it should be a mapping of names to values")
    for name in data:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the settings are {', '.join(sorted(known))}"
            raise SettingError(f"settings {file}: unknown setting {name}; {hint}")
    return data
