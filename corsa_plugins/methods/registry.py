"""Methods by name.

Extensions add theirs by an entry point in the group ``corsa_plugins.methods``: its name is the method's, its value a
function that takes the method's options by name and returns a :class:`~corsa_plugins.methods.spec.Method`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from corsa_plugins.errors import SettingError, missing_extra
from corsa_plugins.methods.editors import alphaedit, alphaedit_plus, rsft_merged, rsft_plain
from corsa_plugins.methods.spec import Method

__all__ = ["GROUP", "make_method", "method_names"]

GROUP = "corsa_plugins.methods"

_OWN: dict[str, Callable[..., Method]] = {
    "alphaedit": alphaedit,
    "alphaedit+": alphaedit_plus,
    "rsft": rsft_plain,
    "rsft-merged": rsft_merged,
}


def method_names() -> list[str]:
    """Every name that :func:`make_method` takes."""
    return sorted({*_OWN, *(entry.name for entry in entry_points(group=GROUP))})


def make_method(name: str, **options: Any) -> Method:
    """A method by its name.

    Args:
        name: One of :func:`method_names`.
        options: The method's own: ``statistics`` and ``settings`` for the AlphaEdit ones, ``settings`` for R-SFT, and
            what an extension documents for its own.

    Raises:
        SettingError: There is no such method, or it takes no such option, or needs one that is not given.
        MissingExtraError: It needs a framework that is not installed.
    """
    factory = _factory(name)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        takes = ", ".join(inspect.signature(factory).parameters) or "none"
        raise SettingError(f"method {name}: {error}; its options are: {takes}") from None
    return factory(**options)


def _factory(name: str) -> Callable[..., Method]:
    if name in _OWN:
        return _OWN[name]
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            try:
                return entry.load()
            except ImportError as error:
                explained = missing_extra(error, f"method {name}")
                if explained is None:
                    raise
                raise explained from None
    close = difflib.get_close_matches(name, method_names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"the methods are {', '.join(method_names())}"
    raise SettingError(f"no method {name!r}: {hint}")
