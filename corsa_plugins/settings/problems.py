"""What is wrong with settings, in words, and what may have been meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from corsa_plugins.errors import SettingError

__all__ = ["InvalidSettingsError", "Problem", "did_you_mean", "problem", "unknown_names"]


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


def problem(name: str, value: Any, wanted: str) -> Problem:
    """The setting is this value, and it is wanted otherwise."""
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


def did_you_mean(name: str, known: Collection[str], those: str) -> str:
    """``"did you mean rate?"`` where a known name is close to this one; else all of them, behind ``those``."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"{those} {', '.join(sorted(known))}"
