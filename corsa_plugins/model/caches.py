"""What a model keeps of the tokens it has read, under the names that transformers has for it.

It is ``past_key_values`` in a forward's arguments and outputs, and ``cache`` since transformers 5.24, which takes the
other name until 5.40 with a warning.
"""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["cache_argument", "cache_of"]

_NAMES = ("cache", "past_key_values")


def cache_argument(model: Any) -> str:
    """The name of the argument by which a model of transformers takes what it has kept."""
    parameters = inspect.signature(type(model).forward).parameters
    return next((name for name in _NAMES if name in parameters), _NAMES[-1])


def cache_of(output: Any) -> Any:
    """What a model has kept with this output of its forward; ``None`` if nothing."""
    return next((kept for name in _NAMES if (kept := getattr(output, name, None)) is not None), None)
