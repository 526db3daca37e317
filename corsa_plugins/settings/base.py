"""The base class of settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from corsa_plugins.errors import SettingError
from corsa_plugins.paths import user_path
from corsa_plugins.settings.checks import check_fields, missing_fields
from corsa_plugins.settings.problems import InvalidSettingsError, problem, unknown_names
from corsa_plugins.settings.reading import plain, read_mapping

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Base of settings: frozen dataclasses whose annotations say what a field may hold.

    A value is never bent to fit: ``True`` is no number, ``"5e-4"`` neither, and NaN and infinity are refused. But an
    integer is taken for a float, a list for a tuple, and a mapping for a part that is a settings class itself.

    Presets are the YAML files in the folder :attr:`PRESETS` beside the module of the class.
    """

    PRESETS: ClassVar[str] = "presets"

    def __post_init__(self) -> None:
        for name, value in check_fields(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """What holds between fields, each of which is all right alone; ``raise self.refused(...)`` where it does not.

        Raises:
            SettingError: It does not hold.
        """

    def refused(self, name: str, wanted: str) -> InvalidSettingsError:
        """The error that says what a setting is, and what it should be."""
        return InvalidSettingsError([problem(name, getattr(self, name), wanted)])

    def as_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back to equal settings, also through JSON or YAML."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The settings of a mapping as in the YAML files: parts are mappings of their own.

        Raises:
            SettingError: Unknown or missing settings, or values that cannot be; the message names them all.
        """
        known = [field.name for field in fields(cls)]
        problems = [*unknown_names(data, known), *missing_fields(cls, data)]
        if problems:
            raise InvalidSettingsError(problems)
        return cls(**data)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names of the settings that come with the package, for :meth:`load`."""
        return tuple(sorted(cls._preset_files()))

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Self:
        """Settings from a YAML file, or a preset by its name (:meth:`presets`). What a file leaves out is the default.

        Raises:
            SettingError: There is no such file or preset, it cannot be read, or as for :meth:`from_dict`; the message
                names it.
        """
        path = user_path(source)
        presets = cls._preset_files()
        where = f"settings {os.fspath(source)}"
        if path.is_file():
            data = read_mapping(path, where)
        elif os.fspath(source) in presets:
            data = read_mapping(presets[os.fspath(source)], where)
        else:
            known = ", ".join(cls.presets())
            cure = f", nor a preset; the presets are {known}" if known else ": name a YAML file"
            raise SettingError(f"{where}: no such file (looked in {Path.cwd()}){cure}")
        try:
            return cls.from_dict(data)
        except InvalidSettingsError as error:
            raise InvalidSettingsError(error.problems, where) from error
        except SettingError as error:
            raise SettingError(f"{where}: {error}") from error

    @classmethod
    def _preset_files(cls) -> dict[str, Traversable]:
        package = cls.__module__.rpartition(".")[0]
        folder = files(package) / cls.PRESETS if package else None
        if folder is None or not folder.is_dir():
            return {}
        return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a field of other settings: an object of the class, or a mapping of its settings."""

        def part(value: Any) -> Any:
            if isinstance(value, cls):
                return value
            if isinstance(value, Mapping):
                return cls.from_dict(value)
            raise ValueError

        return core_schema.no_info_plain_validator_function(part)
