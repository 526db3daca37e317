"""Scaled and pruned delta merging for mergekit: ``merge_method: scaled_pruned_delta``.

:func:`register` makes the method known to mergekit, which has no discovery of plug-ins; the command
``corsa merge recipe.yaml out/`` is ``mergekit-yaml`` with the method known.
"""

from importlib.util import find_spec

from corsa_plugins.errors import MissingExtraError
from corsa_plugins.merging.recipe import METHOD
from mergekit_ext.registration import register

__all__ = ["METHOD", "register"]

if find_spec("mergekit") is None:
    raise MissingExtraError("mergekit_ext needs mergekit: pip install 'corsa-plugins[mergekit]'", name="mergekit")
