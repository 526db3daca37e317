"""Making the method known to mergekit, which has no discovery of plug-ins.

Importing mergekit takes seconds, and ``corsa --help`` loads this package: so where mergekit is not loaded yet, the
method is registered as soon as somebody imports it, not before.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from corsa_plugins.errors import CorsaError

__all__ = ["METHOD", "register", "register_with_mergekit"]

METHOD = "scaled_pruned_delta"
"""What a recipe calls it: ``merge_method: scaled_pruned_delta``."""

_METHODS = "mergekit.merge_methods"


def register() -> None:
    """Make ``scaled_pruned_delta`` known to mergekit; again is fine.

    Raises:
        CorsaError: mergekit knows another method of this name.
    """
    from mergekit import merge_methods

    from mergekit_ext.method import scaled_pruned_delta

    known = {method.spec.name: method for method in merge_methods.registered_methods()}.get(METHOD)
    if known is None:
        merge_methods.register(scaled_pruned_delta)
    elif getattr(getattr(known, "implementation", None), "__module__", None) != "mergekit_ext.method":
        raise CorsaError(f"mergekit already has another merge method named {METHOD!r}: {known!r}")


def register_with_mergekit() -> None:
    """Register now if mergekit's methods are loaded, else as soon as they are."""
    if _METHODS in sys.modules:
        register()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _METHODS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if "mergekit_ext.method" not in sys.modules:  # else it is being imported, and registers itself
                register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
