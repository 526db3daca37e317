"""Recipes that come with the package: copy one and name your models in it."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from corsa_plugins.errors import CorsaError

__all__ = ["find_recipe", "recipe_names"]


def recipe_names() -> list[str]:
    """The packaged recipes, by name."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """The file of a recipe: ``recipe`` itself, or the packaged one of that name.

    Raises:
        CorsaError: There is neither.
    """
    path, packaged = Path(recipe), Path(__file__).parent / f"{recipe}.yaml"
    if path.exists() or (packaged.parent == Path(__file__).parent and packaged.exists()):
        return path if path.exists() else packaged
    close = difflib.get_close_matches(str(recipe), recipe_names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"packaged recipes: {', '.join(recipe_names())}"
    raise CorsaError(f"{recipe}: no such recipe; {hint}")
