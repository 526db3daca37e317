"""Scaled and pruned delta merging for mergekit: ``merge_method: scaled_pruned_delta``.

Importing this package makes the method known to mergekit, whichever of the two is imported first; the command
``corsa merge recipe.yaml out/`` is ``mergekit-yaml`` with the method known.
"""

from importlib.util import find_spec

from corsa_plugins.errors import MissingExtraError
from mergekit_ext.registration import METHOD, register, register_with_mergekit

__all__ = ["METHOD", "register"]

if find_spec("mergekit") is None:
    raise MissingExtraError("mergekit_ext needs mergekit: pip install 'corsa-plugins[mergekit]'", name="mergekit")
register_with_mergekit()
