"""Errors that a user can act on, and the one way to ask for an optional dependency."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = [
    "CorsaError",
    "DamagedError",
    "LoadingError",
    "MissingExtraError",
    "SettingError",
    "extra_is_missing",
    "missing_extra",
    "naming_extra",
    "require",
]


class CorsaError(Exception):
    """Base of the errors this project raises on purpose: the message says what is wrong and what to do.

    They come out of another process as they were raised there, whatever their own constructors take.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = super().__reduce__()
        return (_as_raised, (type(self), *reduced[1]), *reduced[2:])


def _as_raised(kind: type[CorsaError], *arguments: Any) -> CorsaError:
    return kind.__new__(kind, *arguments)


class DamagedError(CorsaError, ValueError):
    """A file is not what was written: missing, cut short or changed; the message names it."""


class LoadingError(CorsaError, OSError):
    """A model or an adapter that is not where it was said to be, or is not one."""


class MissingExtraError(CorsaError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class SettingError(CorsaError, ValueError):
    """A setting out of its range; the message names it and says what it may be."""


_NAMES = {"trl": "TRL", "peft": "PEFT", "easyeditor": "EasyEdit", "lm_eval": "lm-eval"}
_EXTRAS = {
    "trl": "trl",
    "peft": "trl",
    "accelerate": "trl",
    "datasets": "trl",
    "easyeditor": "easyedit",
    "mergekit": "mergekit",
    "lm_eval": "eval",
    "gguf": "gguf",
    "torchao": "quantised",
    "bitsandbytes": "quantised",
}
"""Optional dependencies and the extra that brings each."""


def missing_extra(error: ImportError, what: str) -> MissingExtraError | None:
    """The one-line error for a failed import of an optional dependency by ``what``; ``None`` for any other import."""
    if isinstance(error, MissingExtraError):
        return error
    top = (error.name or "").partition(".")[0]
    if top not in _EXTRAS:
        return None
    return MissingExtraError(_needs(what, top, _EXTRAS[top]), name=error.name)


@contextmanager
def naming_extra(what: str) -> Iterator[None]:
    """Within the block, a failed import of an optional dependency by ``what`` becomes :class:`MissingExtraError`."""
    try:
        yield
    except ImportError as error:
        explained = missing_extra(error, what)
        if explained is None:
            raise
        raise explained from None


def extra_is_missing(extra: str, what: str) -> MissingExtraError | None:
    """The one-line error for ``what`` if a module that the extra brings is not installed; nothing is imported."""
    for module, bringing in _EXTRAS.items():
        if bringing == extra and find_spec(module) is None:
            return MissingExtraError(_needs(what, module, extra), name=module)
    return None


def _needs(what: str, module: str, extra: str) -> str:
    return f"{what} needs {_NAMES.get(module, module)}: pip install 'corsa-plugins[{extra}]'"


def require(module: str, extra: str, *, what: str = "this") -> ModuleType:
    """Import ``module`` or say, in one line, which extra to install.

    Args:
        module: Name of the module to import, for instance ``"peft"``.
        extra: The extra of ``corsa-plugins`` that installs it, for instance ``"trl"``.
        what: What needs it, the subject of the message, for instance ``"corsa train"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: ``module`` is not installed. An import error *inside* an installed module is left alone:
            installing the extra again would not cure it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name not in (module, top):
            raise
        raise MissingExtraError(_needs(what, top, extra), name=module) from None
