"""Errors that a user can act on, and the one way to ask for an optional dependency."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["CorsaError", "MissingExtraError", "require"]


class CorsaError(Exception):
    """Base of the errors this project raises on purpose: the message says what is wrong and what to do."""


class MissingExtraError(CorsaError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


_NAMES = {"trl": "TRL", "peft": "PEFT", "easyeditor": "EasyEdit", "mergekit": "mergekit", "lm_eval": "lm-eval"}


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
        raise MissingExtraError(
            f"{what} needs {_NAMES.get(top, top)}: pip install 'corsa-plugins[{extra}]'", name=module
        ) from None
