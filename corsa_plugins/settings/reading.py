"""Settings as plain data, and from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from corsa_plugins.errors import SettingError
from corsa_plugins.parsing import json_value, yaml_value

__all__ = ["plain", "read_mapping"]


def read_mapping(file: Path | Traversable, where: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, empty for an empty file; ``where`` goes in front of the messages.

    Raises:
        SettingError: It cannot be read, is no text, or no YAML (no JSON, if its name ends so), or no mapping.
    """
    kind = "JSON" if file.name.endswith(".json") else "YAML"
    try:
        text = file.read_text(encoding="utf-8")
        data = _whole_characters(json_value(text)) if kind == "JSON" else yaml_value(text)
    except UnicodeDecodeError as error:
        raise SettingError(f"{where} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise SettingError(f"{where} cannot be read: {error}") from error
    except ValueError as error:
        raise SettingError(f"{where} is not {kind}: {error}") from error
    if not isinstance(data, dict | None):
        raise SettingError(f"{where}: it should be a mapping of names to values")
    return data or {}


def _whole_characters(data: Any) -> Any:
    """Data as they are, without half characters, which JSON can name and nothing can write."""
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data


def plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples and (sorted) sets as lists: what JSON and YAML hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
