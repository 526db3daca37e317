"""Getting a testbed: the one shipped with the package, or any other, built once and kept in the user's cache."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from platformdirs import user_cache_dir

from corsa_plugins.files import atomic_directory
from corsa_plugins.paths import user_path
from corsa_plugins.testbed.build import Testbed, build_testbed, read_testbed
from corsa_plugins.testbed.manifest import BrokenTestbedError, check_manifest
from corsa_plugins.testbed.recipe import TestbedRecipe

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "data"
CACHE_VARIABLE = "CORSA_CACHE"


def load_testbed(recipe: TestbedRecipe | None = None, cache_dir: str | os.PathLike[str] | None = None) -> Testbed:
    """The testbed of `recipe`; without one, or for the default recipe, the one that ships with the package.

    The shipped testbed loads in about a second. Any other is built on first use (minutes at the default size) and
    kept in `cache_dir`, else in `$CORSA_CACHE`, else in the user's cache folder. A kept testbed whose files do not
    match their checksums is built anew, with a warning in the log.

    Returns:
        A fresh copy: what you do to its model, no later call sees.

    Raises:
        BrokenTestbedError: the shipped files are damaged; reinstall the package.
    """
    recipe = TestbedRecipe() if recipe is None else recipe
    key = recipe.key()
    if recipe == TestbedRecipe():
        try:
            check_manifest(SHIPPED, key)
        except BrokenTestbedError as error:
            raise BrokenTestbedError(
                f"the testbed shipped with corsa-plugins is damaged: {error}. Reinstall the package, or rebuild the "
                "files: corsa testbed --rebuild --output FOLDER, and put what is in FOLDER/model into "
                f"{SHIPPED}"
            ) from error
        return read_testbed(SHIPPED)
    folder = cache_root(cache_dir) / f"testbed-{key}"
    if folder.exists():
        try:
            check_manifest(folder, key)
            return read_testbed(folder)
        except BrokenTestbedError as error:
            logger.warning("cached testbed is damaged and will be built anew: %s", error)
    return _build_into(recipe, folder)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where built testbeds are kept: the argument, else `$CORSA_CACHE`, else the user's cache folder."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or user_cache_dir("corsa-plugins")
    return user_path(chosen).absolute()


def _build_into(recipe: TestbedRecipe, folder: Path) -> Testbed:
    """Build so that nobody ever reads half a testbed; if another process is quicker, its testbed stays."""
    logger.info("building testbed %s in %s", recipe.key(), folder.parent)
    with contextlib.suppress(_BuiltMeanwhileError), atomic_directory(folder) as unfinished:
        build_testbed(recipe, unfinished)
        if _is_sound(folder, recipe.key()):
            raise _BuiltMeanwhileError
    return read_testbed(folder)


class _BuiltMeanwhileError(Exception):
    """Another process has finished the same testbed: its sound one is as good as ours."""


def _is_sound(folder: Path, key: str) -> bool:
    try:
        check_manifest(folder, key)
    except BrokenTestbedError:
        return False
    return True
