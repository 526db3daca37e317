"""Methods by name.

Extensions add theirs by an entry point in the group ``corsa_plugins.methods``: its name is the method's, its value a
:class:`~corsa_plugins.methods.spec.MethodSpec`, or a function that takes the method's options by name and returns a
:class:`~corsa_plugins.methods.spec.Method`. A module is imported when its method is wanted or listed.
"""

from __future__ import annotations

import difflib
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from corsa_plugins.errors import SettingError, naming_extra
from corsa_plugins.methods.spec import Method, MethodSpec

__all__ = ["GROUP", "make_method", "method_names", "method_spec", "method_specs", "unusable_methods"]

GROUP = "corsa_plugins.methods"

_OWN = {
    "alphaedit": "corsa_plugins.methods.alphaedit:alphaedit",
    "alphaedit+": "corsa_plugins.methods.alphaedit:alphaedit_plus",
    "blue": "corsa_plugins.methods.family.blue:blue",
    "blue+": "corsa_plugins.methods.family.blue:blue_plus",
    "emmet": "corsa_plugins.methods.family.rome:emmet",
    "encore": "corsa_plugins.methods.family.encore:encore",
    "in-context": "corsa_plugins.methods.in_context.method:in_context",
    "kde": "corsa_plugins.methods.family.kde:kde",
    "locft-bf": "corsa_plugins.methods.locft.method:locft_bf",
    "memit": "corsa_plugins.methods.family.memit:memit",
    "memit+": "corsa_plugins.methods.family.memit:memit_plus",
    "nas": "corsa_plugins.methods.family.nas:nas",
    "prune": "corsa_plugins.methods.family.prune:prune",
    "prune+": "corsa_plugins.methods.family.prune:prune_plus",
    "rect": "corsa_plugins.methods.family.rect:rect",
    "rect+": "corsa_plugins.methods.family.rect:rect_plus",
    "rome": "corsa_plugins.methods.family.rome:rome",
    "rsft": "corsa_plugins.methods.rsft:rsft_plain",
    "rsft-merged": "corsa_plugins.methods.rsft:rsft_merged",
    "sphere": "corsa_plugins.methods.family.sphere:sphere",
}


def method_names() -> list[str]:
    """Every name that :func:`method_spec` takes; nothing is imported."""
    return sorted(_entries())


def method_spec(name: str) -> MethodSpec:
    """What is known of a method.

    Args:
        name: One of :func:`method_names`.

    Raises:
        SettingError: There is no such method, or the entry point holds none, or one of another name.
        MissingExtraError: Its module needs a framework that is not installed.
    """
    entries = _entries()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the methods are {', '.join(method_names())}"
        raise SettingError(f"no method {name!r}: {hint}")
    with naming_extra(f"method {name}"):
        value = entries[name].load()
    if not isinstance(value, MethodSpec):
        return _of_function(name, value)
    if value.name != name:
        raise SettingError(f"the method {value.name} is offered as {name}: the entry point must have the method's name")
    return value


def method_specs() -> list[MethodSpec]:
    """Every method that can be imported, those that others are compared with before them."""
    specs = [spec for spec in _specs_or_errors().values() if isinstance(spec, MethodSpec)]
    return sorted(specs, key=lambda spec: (spec.rank, spec.name))


def unusable_methods() -> dict[str, str]:
    """The methods whose modules cannot be imported, and why."""
    return {name: str(error) for name, error in _specs_or_errors().items() if isinstance(error, Exception)}


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
    return method_spec(name)(**options)


def _entries() -> dict[str, EntryPoint]:
    """Where each method is. An extension takes no name of ours."""
    own = {name: EntryPoint(name, value, GROUP) for name, value in _OWN.items()}
    return {entry.name: entry for entry in entry_points(group=GROUP)} | own


def _specs_or_errors() -> dict[str, MethodSpec | Exception]:
    specs: dict[str, MethodSpec | Exception] = {}
    for name in method_names():
        try:
            specs[name] = method_spec(name)
        except Exception as error:  # one broken extension must not hide the others
            specs[name] = error
    return specs


def _of_function(name: str, function: Any) -> MethodSpec:
    if not callable(function):
        raise SettingError(f"the entry point {name} of {GROUP} is {function!r}: it must be a MethodSpec")
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    return MethodSpec(name=name, title=name, summary=summary, source="", make=function)
