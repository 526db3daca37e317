"""The guard of `tests/fixtures/deprecations.py` tells our own calls from others'."""

from __future__ import annotations

import types
import warnings
from typing import Any

import pytest


def module(name: str, source: str, **known: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(known)
    exec(source, vars(made))
    return made


LIBRARY = """
import warnings
def old(): warnings.warn("old is deprecated", FutureWarning)
def inner(): old()
class Config:
    def __post_init__(self): old()
"""
OTHER = """
def uses(): old()
class Derived(Config):
    def __post_init__(self): super().__post_init__()
"""


def test_a_deprecated_call_of_ours_is_an_error_and_one_of_theirs_a_warning() -> None:
    library = module("library.part", LIBRARY)
    other = module("other", OTHER, old=library.old, Config=library.Config)
    for ours in (library.old, library.inner, library.Config().__post_init__, other.Derived().__post_init__):
        with pytest.raises(FutureWarning, match="of our own call"):
            ours()
    with pytest.warns(FutureWarning, match="old is deprecated$"):
        other.uses()
    with pytest.warns(DeprecationWarning, match="ours"):
        warnings.warn("ours, for our callers", DeprecationWarning, stacklevel=2)
