"""The model card of a merge, which mergekit words."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mergekit.card import generate_card
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration

__all__ = ["write_card"]

logger = logging.getLogger(__name__)


def write_card(config: MergeConfiguration, text: str, folder: Path) -> None:
    """Write ``README.md`` and ``mergekit_config.yml``, as mergekit does, but ask nobody about models that are folders.

    mergekit asks the Hub whether a folder with a short name is a repository too, and a merge without a network would
    fail when all its work is done. Where no card can be had, a warning is logged and there is none.

    Args:
        config: The recipe.
        text: The same, as it is written.
        folder: Of the merged model, by whose name the card calls it.

    Raises:
        OSError: A file cannot be written.
    """
    (folder / "mergekit_config.yml").write_text(text, encoding="utf-8")
    names: dict[str, str] = {}
    try:
        card = generate_card(_with_whole_paths(config, names), text, name=folder.name)
    except Exception as error:  # whatever it is: a card never costs a merge
        logger.warning("no model card is written: %s", error)
        return
    for whole, name in names.items():
        card = card.replace(whole, name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _with_whole_paths(config: MergeConfiguration, names: dict[str, str]) -> MergeConfiguration:
    """The recipe with the whole path of every folder, no repository's name; ``names`` gets path -> name."""

    def whole(part: ModelPath | None) -> ModelPath | None:
        if part is None or not os.path.exists(part.path):
            return part
        path = os.path.abspath(part.path)
        names[path] = part.path
        return part.model_copy(update={"path": path})

    def reference(model: ModelReference) -> ModelReference:
        return model.model_copy(update={"model": whole(model.model), "lora": whole(model.lora)})

    copy = config.model_copy(deep=True)
    if copy.base_model is not None:
        copy.base_model = reference(copy.base_model)
    for part in (copy, *(copy.modules or {}).values()):
        for source in [*(part.models or []), *(source for piece in part.slices or [] for source in piece.sources)]:
            source.model = reference(source.model)
    return copy
