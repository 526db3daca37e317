"""Of which base model an adapter is: noted where one is written, and looked at where one is put on a model.

PEFT puts an adapter on any model that has modules of its names and shapes, and then it says anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.tensor import DTensor

from corsa_plugins.errors import CorsaError, LoadingError
from corsa_plugins.manifest import MANIFEST, read_manifest
from corsa_plugins.model.identity import Fingerprint, FingerprintError
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ABOUT", "BASE", "base_of", "warn_of_another_base"]

logger = logging.getLogger(__name__)

ABOUT = "corsa.json"
"""What an exported adapter says of itself; ``"fingerprint"`` is that of its base."""

BASE = "base"
"""What the fingerprint of its base is called in the manifest of a trained adapter."""


def base_of(model: PreTrainedModel) -> Fingerprint | None:
    """The fingerprint of a model that gets an adapter; ``None``: its parts are not known, not in memory, or spread over
    processes. A few values of each parameter are read."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    try:
        return Fingerprint.of(model)
    except CorsaError as error:
        logger.debug("the base cannot be told by its weights: %s", error)
        return None


def warn_of_another_base(model: PreTrainedModel, folder: Path, what: str) -> None:
    """Say where an adapter was made for another model than the one it is to be put on.

    It may be meant, of a model that was trained further, or merged, so it is no error. Told by the base's weights where
    the adapter was written by this project; else by its name, where that is a folder that is there, and so is the
    model's.

    Args:
        model: Without an adapter yet.
        folder: Of the adapter.
        what: What the message calls the adapter.

    Raises:
        LoadingError: What the folder says of its base is damaged.
    """
    told = _noted(folder, what)
    if told is not None:
        now = base_of(model)
        different = None if now is None else told.contradiction(now)
        if now is not None and different is not None:
            _warn(what, f"{told}", f"this is {now}: {different}")
        return
    own, named = (_folder(name) for name in (getattr(model, "name_or_path", None), _named(folder)))
    if own is not None and named is not None and not own.samefile(named):
        _warn(what, f"{named}, as it says", f"this is {own}; if one is a copy of the other, this is nothing")


def _warn(what: str, base: str, now: str) -> None:
    logger.warning("%s was made for another base, %s, and %s. Expect nothing of it there.", what, base, now)


def _noted(folder: Path, what: str) -> Fingerprint | None:
    """What one of this project's own folders says of the adapter's base."""
    file = folder / MANIFEST
    try:
        manifest = read_manifest(folder)
        noted = None if manifest is None else manifest.about.get(BASE)
        if noted is None and (folder / ABOUT).is_file():
            file = folder / ABOUT
            noted = json_value(file.read_text(encoding="utf-8"))
            noted = noted.get("fingerprint") if isinstance(noted, Mapping) else None
        return None if noted is None else Fingerprint.from_dict(noted)
    except (FingerprintError, OSError, ValueError) as error:
        raise LoadingError(
            f"{what} cannot be loaded: what {file} says of its base is damaged ({error}); restore it, or delete it"
        ) from error


def _named(folder: Path) -> Any:
    """The base by its name, of any PEFT adapter; what is wrong with the file is said where PEFT reads it."""
    try:
        config = json_value((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("base_model_name_or_path") if isinstance(config, Mapping) else None


def _folder(name: Any) -> Path | None:
    """A name of a model as a folder that is there."""
    try:
        path = user_path(name) if isinstance(name, str) and name else None
        return path if path is not None and path.is_dir() else None
    except (OSError, ValueError):  # too long, or with a zero byte
        return None
