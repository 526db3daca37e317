"""Making the method known to mergekit, which has no discovery of plug-ins."""

from __future__ import annotations

from corsa_plugins.errors import CorsaError
from corsa_plugins.merging.recipe import METHOD

__all__ = ["register"]


def register() -> None:
    """Make ``scaled_pruned_delta`` known to mergekit, for every merge of this process; again is fine.

    Raises:
        CorsaError: mergekit knows another method of this name.
    """
    from mergekit import merge_methods

    from mergekit_ext.merge_method import DeltaMerge, scaled_pruned_delta

    known = {method.spec.name: method for method in merge_methods.registered_methods()}.get(METHOD)
    if known is None:
        merge_methods.register(scaled_pruned_delta)
    elif not isinstance(known, DeltaMerge):
        raise CorsaError(f"mergekit already has another merge method named {METHOD!r}: {known!r}")
