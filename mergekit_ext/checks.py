"""Everything that can be said against a recipe before any tensor is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, MergeConfiguration
from mergekit.options import MergeOptions
from pydantic import BaseModel, ValidationError

from corsa_plugins.errors import CorsaError
from corsa_plugins.merging.recipe import METHOD
from corsa_plugins.model.gguf import refuse_gguf
from corsa_plugins.model.stored import check_stored
from corsa_plugins.settings import did_you_mean
from mergekit_ext.merge_method import scaled_pruned_delta
from mergekit_ext.stored_models import StoredModel, read_stored_model

__all__ = ["RecipeError", "check_names", "check_recipe", "check_settings"]


class RecipeError(CorsaError, ValueError):
    """A recipe that cannot be carried out; the message names the setting, the model or the tensor."""


def check_recipe(config: MergeConfiguration, options: MergeOptions, out: Path) -> dict[ModelReference, StoredModel]:
    """Refuse what would fail, or go wrong unseen, in the middle of a merge.

    Models on the Hub are downloaded, as mergekit would. Settings and agreement of the models are checked for our own
    method; what other methods allow is mergekit's to say.

    Returns:
        The models of the recipe as they are on disk; of ``model+adapter``, the model.

    Raises:
        RecipeError: A parameter is unknown or out of range, or the models differ in architecture, shape or vocabulary,
            or the device is not there.
        ModelError: A model is not complete.
    """
    device = str(options.device or "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"device is {device!r}, and this machine has no CUDA device that torch can use")
    if options.multi_gpu and not torch.cuda.is_available():
        raise RecipeError("multi_gpu: this machine has no CUDA device that torch can use; leave --multi-gpu out")
    if config.merge_method == METHOD:
        check_settings(config)
    stored = {model: _read(model, options) for model in sorted(config.referenced_models(), key=str)}
    if config.merge_method == METHOD:
        base = config.base_model or next((s.base_model for s in config.slices or [] if s.base_model), None)
        if base is not None and base in stored:
            for model, files in stored.items():
                if model != base:
                    _check_agreement(config, options, (str(base), stored[base]), (str(model), files))
    _check_space(config, stored, out)
    return stored


def check_names(config: Any, content: Any, where: str) -> None:
    """Refuse a recipe of our own method with a name that mergekit does not know: it would go on without what it says.

    Args:
        config: The recipe as mergekit reads it.
        content: The same as it is written.
        where: The file.

    Raises:
        RecipeError: Naming the first such name, and where it belongs or what may have been meant.
    """
    if isinstance(config, BaseModel) and isinstance(content, Mapping):
        known = type(config).model_fields
        for name, value in content.items():
            if name in known:
                check_names(getattr(config, name), value, f"{where}, {name}")
            elif "parameters" in known and name in _parameters():
                raise RecipeError(f"{where}: {name} belongs under `parameters:`")
            else:
                raise RecipeError(f"{where}: {name} is not known here: {did_you_mean(str(name), known, 'there are')}")
    elif isinstance(config, Mapping) and isinstance(content, Mapping):
        for name, value in content.items():
            check_names(config.get(name), value, f"{where}, {name}")
    elif isinstance(config, list | tuple) and isinstance(content, list):
        for index, (part, written) in enumerate(zip(config, content, strict=True)):
            check_names(part, written, f"{where}[{index}]")


def _parameters() -> dict[str, Any]:
    return {parameter.name: parameter for parameter in scaled_pruned_delta.spec.parameters}


def check_settings(config: MergeConfiguration) -> None:
    """Refuse a recipe of our own method without a base, or with a parameter that is unknown or out of range.

    Raises:
        RecipeError: Naming the parameter, and the part of the recipe it is in.
    """
    slices = config.slices or []
    if config.base_model is None and not (slices and all(piece.base_model for piece in slices)):
        raise RecipeError(f"{METHOD} needs a base: add `base_model:` to the recipe")
    specs = _parameters()
    for where, settings in _all_settings(config):
        for name, setting in settings.items():
            if name not in specs:
                raise RecipeError(f"{where}: {METHOD} has no parameter {name!r}; it has {', '.join(specs)}")
            for value in _values(setting):
                if value == []:
                    raise RecipeError(f"{where}: {name} is an empty list: give a number, or leave it out")
                try:
                    specs[name].validate(value)
                except ValidationError as error:
                    detail = error.errors()[0]
                    cause = detail.get("ctx", {}).get("error")
                    raise RecipeError(f"{where}: {cause or f'{name} is {value!r}: ' + detail['msg']}") from None


def _all_settings(config: MergeConfiguration) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every block of parameters in a recipe, and where it is."""
    yield "parameters", config.parameters or {}
    parts: list[tuple[str, Any]] = [("", config)]
    parts += [(f"modules.{name}.", module) for name, module in (config.modules or {}).items()]
    for prefix, part in parts:
        if prefix:
            yield f"{prefix}parameters", part.parameters or {}
        for model in part.models or []:
            yield f"{prefix}models, {model.model}", model.parameters or {}
        for index, piece in enumerate(part.slices or []):
            yield f"{prefix}slices[{index}]", piece.parameters or {}
            for source in piece.sources:
                yield f"{prefix}slices[{index}], {source.model}", source.parameters or {}


def _values(setting: Any) -> Iterator[Any]:
    """The scalars in a setting: a number, a gradient over layers, or filters with either; an empty list as it is."""
    if isinstance(setting, ConditionalParameter):
        yield from _values(setting.value)
    elif isinstance(setting, list) and setting:
        for part in setting:
            yield from _values(part)
    else:
        yield setting


def _read(model: ModelReference, options: MergeOptions) -> StoredModel:
    try:
        refuse_gguf(model.model.path, "mergekit")
    except CorsaError as error:
        raise RecipeError(str(error)) from None
    for part in (model.model, model.lora):
        local = part is not None and (part.path.startswith((".", "/", "~")) or part.path.count("/") > 1)
        if part is not None and local and not os.path.isdir(part.path):
            raise RecipeError(f"model {model}: no such folder: {part.path} (looked in {Path.cwd()})")
    try:
        path = Path(model.local_path(cache_dir=options.transformers_cache, ignore_lora=True))
    except (OSError, ValueError) as error:
        raise RecipeError(f"model {model} is neither a folder nor found on the Hub: {error}") from error
    if model.lora is not None and os.path.isdir(model.lora.path):
        check_stored(Path(model.lora.path), f"adapter {model.lora.path}")
    return read_stored_model(path, str(model))


def _check_agreement(
    config: MergeConfiguration, options: MergeOptions, base: tuple[str, StoredModel], other: tuple[str, StoredModel]
) -> None:
    (base_name, old), (name, new) = base, other
    if old.architecture != new.architecture and not options.allow_crimes:
        raise RecipeError(f"{name} is a {new.architecture} and {base_name} a {old.architecture}: they have no delta")
    aligned = bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)
    sizes = (old.config.get("vocab_size"), new.config.get("vocab_size"))
    if sizes[0] != sizes[1] and not aligned:
        raise RecipeError(
            f"{name} has a vocabulary of {sizes[1]} tokens and {base_name} one of {sizes[0]}: align them with "
            "`tokenizer: {source: base}` in the recipe"
        )
    for tensor in sorted(old.shapes.keys() & new.shapes.keys()):
        before, after = old.shapes[tensor], new.shapes[tensor]
        vocabulary = aligned and sizes[0] in before and sizes[1] in after
        if before != after and not vocabulary:
            raise RecipeError(f"{tensor} has shape {after} in {name} and {before} in {base_name}: they have no delta")
    if not aligned:
        _check_tokens(base, other)


def _check_tokens(base: tuple[str, StoredModel], other: tuple[str, StoredModel]) -> None:
    """Rows of an embedding can only be subtracted if they are of the same tokens."""
    files = [model.path / "tokenizer.json" for _, model in (base, other)]
    if not all(file.exists() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = base[1].vocabulary(), other[1].vocabulary()
    if ours is None or theirs is None or ours == theirs:
        return
    token = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise RecipeError(
        f"{other[0]} and {base[0]} have different vocabularies: token {token!r} has id {theirs.get(token)} in the one "
        f"and {ours.get(token)} in the other; align them with `tokenizer: {{source: base}}` in the recipe"
    )


def _check_space(config: MergeConfiguration, stored: Mapping[ModelReference, StoredModel], out: Path) -> None:
    donor = stored.get(config.base_model) if config.base_model else None
    if donor is None or config.slices or config.modules or config.dtype or config.out_dtype:
        return  # how large the output will be is mergekit's to know
    folder = next(parent for parent in out.parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < donor.size:
        raise RecipeError(f"{out} needs {donor.size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left")
