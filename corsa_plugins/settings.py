"""The one base of every settings class: what a field may hold is said where it is declared, and checked there.

    @dataclass(frozen=True)
    class MySettings(Settings):
        layer: BlockNumber
        rate: Positive = 0.1
        search: SearchSettings | None = None

Plain dataclasses, checked by pydantic, rather than pydantic's own classes: ``replace``, ``fields``, pickling and
construction by position are those of every dataclass, and mutable ones (EasyEdit's) are checked by the same function.
"""

from __future__ import annotations

import difflib
import json
import os
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from corsa_plugins.errors import SettingError

__all__ = [
    "BlockNumber",
    "Count",
    "InvalidSettingsError",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "Problem",
    "Settings",
    "Share",
    "check_fields",
    "did_you_mean",
    "missing_fields",
    "plain",
    "read_mapping",
    "unknown_names",
]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
BlockNumber = Annotated[int, Field(ge=0, description="the number of a block, counted from 0")]
"""Types of fields that many classes have. A ``description`` is what the message says a value must be."""


class Problem(NamedTuple):
    """What is wrong with one setting.

    Attributes:
        name: Of the setting, ``values.lr`` for that of a part.
        text: Goes behind the name: what it is, and what it must be.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name} {self.text}"


class InvalidSettingsError(SettingError):
    """Settings that cannot be; the message names each, its value, and what to give instead.

    Attributes:
        problems: One or more.
    """

    def __init__(self, problems: Iterable[Problem], where: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__(f"{where}{': ' if where else ''}{'; '.join(map(str, self.problems))}")

    def renamed(self, names: Mapping[str, str]) -> InvalidSettingsError:
        """The same of settings that are called something else: ours -> theirs."""
        return InvalidSettingsError(Problem(names.get(name, name), text) for name, text in self.problems)


@dataclass(frozen=True)
class Settings:
    """Base of settings: frozen dataclasses whose annotations say what a field may hold.

    A value is never bent to fit: ``True`` is no number, ``"5e-4"`` neither, and NaN and infinity are refused. But an
    integer is taken for a float, a list for a tuple, and a mapping for a part that is a settings class itself.

    Presets are the YAML files in the folder ``presets`` beside the module of the class.
    """

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
        return InvalidSettingsError([_problem(name, getattr(self, name), wanted)])

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
        path = Path(source).expanduser()
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
        folder = files(package) / "presets" if package else None
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


def check_fields(kind: type, values: Mapping[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    """The values of a dataclass's fields, of the types that it declares for them.

    Args:
        kind: The dataclass.
        values: By name, of the fields that are to be checked; other names are left out.
        lenient: Take text for numbers (``"5e-1"``, which YAML reads as text) and 20.0 for an integer; but no lists for
            tuples.

    Raises:
        InvalidSettingsError: With every value that is of another type, or out of its range.
    """
    checked: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, check in _checks(kind).items():
        if name not in values:
            continue
        try:
            checked[name] = check.lenient(values[name]) if lenient else check.strict(_tupled(values[name]))
        except ValidationError as error:
            problems += check.problems(values[name], error)
    if problems:
        raise InvalidSettingsError(problems)
    return checked


class _Check:
    """What one field may hold."""

    def __init__(self, name: str, hint: Any) -> None:
        self.name = name
        self.hint = hint
        # A settings class brings its own schema, and pydantic takes no configuration beside that of a class.
        config = None if is_dataclass(hint) else ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
        self._adapter: TypeAdapter[Any] = TypeAdapter(hint, config=config)

    def strict(self, value: Any) -> Any:
        return self._adapter.validate_python(value, strict=True)

    def lenient(self, value: Any) -> Any:
        try:
            return self.strict(value)
        except ValidationError:
            # To pydantic True is 1 where it is lenient; a switch where a number belongs is a mistake all the same.
            if any(isinstance(item, bool) for item in (value if isinstance(value, list | tuple) else [value])):
                raise
        return self._adapter.validate_python(value, strict=False)

    def problems(self, value: Any, error: ValidationError) -> list[Problem]:
        for detail in error.errors():
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, InvalidSettingsError):
                return [Problem(f"{self.name}.{name}", text) for name, text in cause.problems]
            if isinstance(cause, ValueError) and str(cause):
                return [_problem(self.name, value, str(cause))]
        wanted = f"it must be {_wanted(self.hint)}"
        if any(detail["type"] == "finite_number" for detail in error.errors()):
            wanted = wanted.replace("a number", "a finite number")
        if isinstance(value, str) and self._would_fit(value):
            wanted += " (to YAML, a number in quotes or without a point, such as 5e-4, is text: write 5.0e-4)"
        return [_problem(self.name, value, wanted)]

    def _would_fit(self, value: Any) -> bool:
        try:
            self.lenient(value)
        except ValidationError:
            return False
        return True


@cache
def _checks(kind: type) -> dict[str, _Check]:
    """By the name of the field."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: _Check(field.name, hints[field.name]) for field in fields(kind)}


class _Shown(reprlib.Repr):
    """``repr`` on one line: what is long is cut, and a whole model is its class."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = 200
        self.maxlist = self.maxtuple = self.maxdict = 20

    def repr_instance(self, x: Any, level: int) -> str:
        shown = repr(x)
        return shown if len(shown) <= self.maxstring and "\n" not in shown else f"<{type(x).__name__}>"


_SHOWN = _Shown()


def _problem(name: str, value: Any, wanted: str) -> Problem:
    return Problem(name, f"is {_SHOWN.repr(value)}: {wanted}")


def unknown_names(
    names: Iterable[str], known: Collection[str], meant: Mapping[str, str] | None = None
) -> list[Problem]:
    """Those of the names that are not known, with what may have been meant.

    Args:
        names: Of settings that are given.
        known: Of settings that there are.
        meant: What other programs call ours: their name -> ours.
    """
    ours = meant or {}
    return [
        Problem(str(name), f"is no setting: {did_you_mean(str(ours.get(name, name)), known, 'the settings are')}")
        for name in names
        if name not in known
    ]


def missing_fields(kind: type, data: Mapping[str, Any]) -> list[Problem]:
    """The fields of the dataclass that have no default and are not in ``data``, with what they must be."""
    return [
        Problem(field.name, f"is missing: it must be {_wanted(_checks(kind)[field.name].hint)}")
        for field in fields(kind)
        if field.init and field.name not in data and field.default is MISSING and field.default_factory is MISSING
    ]


def did_you_mean(name: str, known: Collection[str], those: str) -> str:
    """``"did you mean rate?"`` where a known name is close to this one; else all of them, behind ``those``."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"{those} {', '.join(sorted(known))}"


def read_mapping(file: Path | Traversable, where: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, empty for an empty file; ``where`` goes in front of the messages.

    Raises:
        SettingError: It cannot be read, is no text, or no YAML (no JSON, if its name ends so), or no mapping.
    """
    import yaml

    kind = "JSON" if file.name.endswith(".json") else "YAML"
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if kind == "JSON" else yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise SettingError(f"{where} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise SettingError(f"{where} cannot be read: {error}") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise SettingError(f"{where} is not {kind}: {error}") from error
    if not isinstance(data, dict | None):
        raise SettingError(f"{where}: it should be a mapping of names to values")
    return data or {}


def _tupled(value: Any) -> Any:
    """Lists as tuples: YAML and JSON have no other sequence, and settings are frozen."""
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples and (sorted) sets as lists: what JSON and YAML hold."""
    if isinstance(value, Settings):
        return value.as_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------ types in words

_WORDS: Mapping[Any, str] = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "None", Any: "anything",
}  # fmt: skip

_BOUNDS: Mapping[str, str] = {
    "gt": "over", "ge": "of at least", "lt": "under", "le": "at most", "min_length": "of a length of at least",
}  # fmt: skip


def _wanted(hint: Any) -> str:
    """What a type takes, in words: "it must be ..."."""
    if get_origin(hint) is Annotated:
        kind, *extras = get_args(hint)
        described = [extra.description for extra in extras if isinstance(extra, FieldInfo) and extra.description]
        return described[-1] if described else _wanted(kind) + _limits(extras)
    if hint in _WORDS:
        return _WORDS[hint]
    arguments = get_args(hint)
    words: Callable[[], str] | None = {
        Literal: lambda: f"one of {', '.join(map(str, arguments))}",
        types.UnionType: lambda: _either(arguments),
        typing.Union: lambda: _either(arguments),
    }.get(get_origin(hint))
    if words is not None:
        return words()
    kind = get_origin(hint) or hint
    if issubclass(kind, Mapping):
        return "a mapping"
    if issubclass(kind, Collection) and arguments:
        return f"a list, each item {_wanted(arguments[0])}"
    return f"of class {kind.__name__}{', or a mapping of its settings' if issubclass(kind, Settings) else ''}"


def _either(kinds: Iterable[Any]) -> str:
    return ", or ".join(map(_wanted, kinds))


def _limits(extras: Iterable[Any]) -> str:
    """The bounds among the extras of an ``Annotated``, in words."""
    bounds = [bound for extra in extras for bound in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    limits = {name: getattr(bound, name) for name in _BOUNDS for bound in bounds if hasattr(bound, name)}
    if limits.keys() == {"ge", "le"}:
        return f" between {limits['ge']:g} and {limits['le']:g}"
    said = [f"{_BOUNDS[name]} {limit:g}" for name, limit in limits.items()]
    return f" {' and '.join(said)}" if said else ""
