"""A mergekit recipe carried out so that the output is whole or not there."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from pydantic import ValidationError
from safetensors import SafetensorError

from corsa_plugins.errors import CorsaError
from corsa_plugins.manifest import write_manifest
from corsa_plugins.merging.recipe import METHOD
from corsa_plugins.outputs import OutputError, check_output, disk_errors, new_directory
from corsa_plugins.parsing import yaml_value
from mergekit_ext.card import write_card
from mergekit_ext.checks import RecipeError, check_names, check_recipe
from mergekit_ext.completeness import missing_from
from mergekit_ext.inputs import input_digests
from mergekit_ext.merge_method import ToldTensors, scaled_pruned_delta
from mergekit_ext.recipes import find_recipe
from mergekit_ext.registration import register
from mergekit_ext.stored_models import ModelError, StoredModel, read_stored_model

__all__ = ["Merged", "merge_recipe", "read_recipe"]

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Merged:
    """The outcome of :func:`merge_recipe`.

    Attributes:
        path: The folder of the merged model.
        changed: The tensors that ``scaled_pruned_delta`` changed, all others being the base's own, bit for bit;
            ``None`` for other merge methods.
        lost: Of the others, those in which an edited model differs from the base: of its change there nothing is left.
    """

    path: Path
    changed: tuple[str, ...] | None
    lost: tuple[str, ...] = ()


def read_recipe(recipe: str | os.PathLike[str]) -> tuple[MergeConfiguration, str]:
    """A recipe and its text.

    Args:
        recipe: A YAML file, or the name of a packaged recipe.

    Raises:
        RecipeError: There is no such recipe, or it is not one.
    """
    path = find_recipe(recipe)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml_value(text)
        config = MergeConfiguration.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = "; ".join(f"{'.'.join(map(str, d['loc'])) or 'the recipe'}: {d['msg']}" for d in details[:3])
        raise RecipeError(f"{path}: {told}") from error
    except (ValueError, RuntimeError) as error:  # mergekit's validators raise RuntimeError
        raise RecipeError(f"{path}: {error}") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    if config.merge_method == METHOD:
        check_names(config, content, str(path))
    return config, text


def merge_recipe(
    recipe: str | os.PathLike[str], out: str | os.PathLike[str], options: MergeOptions | None = None
) -> Merged:
    """Merge as ``mergekit-yaml`` does, with ``scaled_pruned_delta`` known and the output whole or not there.

    Args:
        recipe: A YAML file, or the name of a packaged recipe. Any merge method of mergekit.
        out: The folder to make.
        options: mergekit's own. Where a recipe has ``model+adapter`` and no ``lora_merge_cache`` is set, the merged
            models go to a temporary folder beside ``out``.

    Returns:
        Where the output is, and what was changed; a warning is logged if nothing was.

    Raises:
        RecipeError: The recipe, its settings or its models are at fault; see :func:`mergekit_ext.checks.check_recipe`.
        ModelError: A model is not complete.
        DeltaError: A tensor holds NaN or infinity.
        OutputError: The output is not empty or cannot be written.
    """
    register()
    options = options or MergeOptions()
    final = check_output(out)
    config, text = read_recipe(recipe)
    stored = check_recipe(config, options, final)
    inputs = input_digests(stored)
    with new_directory(final) as partial, _loaders(), _logged_errors() as errors:
        with tempfile.TemporaryDirectory(dir=partial.parent, prefix="adapters-") as adapters:
            if options.lora_merge_cache is None and any(model.lora for model in stored):
                options = options.model_copy(update={"lora_merge_cache": adapters})
            told = _run(config, partial, options, final)
        if options.write_model_card:
            with disk_errors(final):
                write_card(config, text, partial)
        donor = config.base_model or config.referenced_models()[0]
        _check_whole(partial, stored[donor], config, options, final, errors)
        with disk_errors(final):
            write_manifest(partial, inputs=inputs)
    if config.merge_method != METHOD:
        return Merged(final, None)
    merged = Merged(final, tuple(told.changed), tuple(told.lost))
    _warn_of_nothing(merged)
    return merged


def _warn_of_nothing(merged: Merged) -> None:
    """Where nothing of an edited model's change is left, in all tensors or in some."""
    cure = "raise weight or density there, or merge in a wider dtype if the change is too small for this one"
    if not merged.changed and merged.lost:
        logger.warning(
            "%s is the base, bit for bit: an edited model differs from it in %d tensors, and nothing of the change is "
            "left; %s",
            merged.path,
            len(merged.lost),
            cure,
        )
    elif not merged.changed:
        logger.warning("%s is the base: no edited model differs from it, bit for bit", merged.path)
    elif merged.lost:
        shown = ", ".join(sorted(merged.lost)[:3]) + (", ..." if len(merged.lost) > 3 else "")
        logger.warning(
            "%s: nothing is left of the change in %d of %d tensors (%s); if the recipe is not to do that, %s",
            merged.path,
            len(merged.lost),
            len(merged.lost) + len(merged.changed),
            shown,
            cure,
        )


def _run(config: MergeConfiguration, partial: Path, options: MergeOptions, final: Path) -> ToldTensors:
    """Merge into ``partial``; what our method did to each tensor."""
    try:
        with disk_errors(final), scaled_pruned_delta.told_tensors() as told, warnings.catch_warnings():
            # an adapter without all its tensors: PEFT says so, and puts its own initial values there
            warnings.filterwarnings("error", "Found missing adapter keys")
            # Planning writes slices into a recipe of whole models: into a copy. mergekit's own card asks the Hub about
            # folders, after all the work: it is written by write_card.
            run_merge(
                config.model_copy(deep=True),
                str(partial),
                options=options.model_copy(update={"write_model_card": False}),
            )
        return told
    except CorsaError:
        raise
    except (RuntimeError, ValueError, OSError, SafetensorError, UserWarning, EOFError, UnpicklingError) as error:
        # mergekit's own complaints: a method it does not know, a setting that is missing, models that do not match
        logger.debug("mergekit's traceback", exc_info=True)
        raise RecipeError(str(error) or f"a model cannot be read: {error!r}") from error


@contextmanager
def _loaders() -> Iterator[None]:
    """mergekit keeps every model it opened in a table of the class: start and leave it empty, for files change."""
    LoaderCache().loaders.clear()
    try:
        yield
    finally:
        LoaderCache().loaders.clear()


def _check_whole(
    partial: Path,
    donor: StoredModel,
    config: MergeConfiguration,
    options: MergeOptions,
    final: Path,
    errors: list[logging.LogRecord],
) -> None:
    try:
        merged = read_stored_model(partial, str(final))
    except ModelError as error:
        raise OutputError(f"{final} was not written whole: {error}; nothing is left of it") from error
    problem = missing_from(merged, donor, config, options)
    if problem is not None:
        raise OutputError(f"{final}: {problem}; nothing is left of the output")
    if errors and options.copy_tokenizer and any((donor.path / name).exists() for name in _TOKENIZER_FILES):
        cause = errors[0].exc_info[1] if errors[0].exc_info else errors[0].getMessage()
        raise OutputError(f"{final}: the tokenizer could not be copied: {cause}; nothing is left of the output")


@contextmanager
def _logged_errors() -> Iterator[list[logging.LogRecord]]:
    """What mergekit logs as an error and goes on: a tokenizer that it cannot copy, for instance to a full disk."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    log = logging.getLogger("mergekit.merge")
    log.addHandler(handler)
    try:
        yield records
    finally:
        log.removeHandler(handler)
