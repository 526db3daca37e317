"""Getting a testbed: the one shipped with the package, or any other, built once and kept in the user's cache."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from platformdirs import user_cache_dir

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
                f"files: python -m corsa_plugins.testbed build --out {SHIPPED}"
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
    return Path(chosen).expanduser().absolute()


def _build_into(recipe: TestbedRecipe, folder: Path) -> Testbed:
    """Build in a temporary folder beside `folder` and rename it, so that nobody ever reads half a testbed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    logger.info("building testbed %s in %s", recipe.key(), folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        built = Path(scratch) / "testbed"
        build_testbed(recipe, built)
        _swap_in(built, folder, Path(scratch) / "old", recipe.key())
    return read_testbed(folder)


def _swap_in(built: Path, folder: Path, aside: Path, key: str) -> None:
    """Put `built` in the place of `folder`.

    A folder cannot be replaced in one step, so what is there is renamed away first. If another process finished the
    same testbed in between, its sound one is as good as ours and stays.
    """
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(built, folder)
    except OSError:
        check_manifest(folder, key)
    shutil.rmtree(aside, ignore_errors=True)
