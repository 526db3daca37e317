"""What a merge was of: digests of the files of its models."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mergekit.common import ModelReference

from corsa_plugins.manifest import known_checksums
from corsa_plugins.model.stored import ADAPTER_FILES
from mergekit_ext.stored_models import StoredModel

__all__ = ["input_digests"]

_BESIDE_WEIGHTS = ("config.json", "tokenizer.json", "tokenizer.model")


def input_digests(stored: Mapping[ModelReference, StoredModel]) -> dict[str, dict[str, str]]:
    """SHA-256 of the files that a merge reads, for every model and adapter as the recipe names it.

    Every byte of the weights is read, unless their folder has a manifest of ours. Of an adapter that is no folder, but
    a repository's name, there are none.

    Args:
        stored: The models of the recipe, as they are on disk, and compared with their manifests.
    """
    found = {}
    for model, files in stored.items():
        if str(model.model) not in found:
            found[str(model.model)] = known_checksums(files.path, (*files.files, *_BESIDE_WEIGHTS))
        if model.lora is not None:
            found[str(model.lora)] = known_checksums(os.path.expanduser(model.lora.path), ADAPTER_FILES)
    return dict(sorted(found.items()))
