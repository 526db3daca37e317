"""Folders with a model or an adapter: writing one, looking at one without loading it, and what can go wrong then."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import CorsaError, LoadingError, SettingError
from corsa_plugins.manifest import DamagedError, check_folder, write_manifest
from corsa_plugins.model.branch import branched_modules
from corsa_plugins.model.placement import files_read, is_offloaded, state_to_save
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path
from corsa_plugins.patterns import check_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ADAPTER_FILES", "auto_class", "check_patterns", "check_stored", "read_header", "reading", "refuse_missing",
    "save_model",
]  # fmt: skip

logger = logging.getLogger(__name__)

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")

ADAPTER_FILES = ("adapter_config.json", *_ADAPTERS)
"""What PEFT reads of an adapter, where it is there."""


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Write a model and its tokenizer to a folder of theirs, with a manifest.

    Raises:
        SettingError: Changes lie beside quantised weights, which no model's folder holds.
        OSError, SafetensorError: It cannot be written.
    """
    branched = branched_modules(model)
    if branched:
        raise SettingError(
            f"{branched[0]} is quantised, and what is edited lies beside its weight: the model's folder would not have "
            "it; save the edit state and export it as an adapter (corsa export)"
        )
    if is_offloaded(model):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")  # that is meant
            model.save_pretrained(folder, state_dict=state_to_save(model))
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder)


def check_target(model: PreTrainedModel, output: str | os.PathLike[str]) -> None:
    """Refuse to replace a folder by what is made of the model in it, or of what is still read from there.

    Raises:
        SettingError: ``output`` is the folder that the model was loaded from; or files are in it that offloaded parts
            of the model are fetched from.
    """
    target = user_path(output).resolve()
    own = str(getattr(model, "name_or_path", "") or "")
    if own and target.is_dir() and user_path(own).resolve() == target:
        raise SettingError(f"{output} is the folder of the model itself, which would be replaced: name another one")
    for name in sorted(files_read(model)):
        file = Path(name).resolve()
        if target in (file, *file.parents):
            raise SettingError(
                f"{output} would be replaced, and holds {name}, from which offloaded parts of the model are read: "
                "name another folder"
            )


def read_header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str], int]:
    """Of the tensors in a safetensors file, by name, their shapes and their types as it has them (``"BF16"``), and the
    bytes of all of them.

    The file is not mapped into memory, as the library would: it may be larger than that.

    Raises:
        ValueError: It is none, or cut short; the message says what is wrong and does not name the file.
        OSError: It cannot be read.
    """
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("no safetensors file, or cut short in its header")
            header = json_value(stream.read(length))
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
        content = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        missing = 8 + length + content - size
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"no safetensors file, or damaged in its header ({type(error).__name__})") from error
    if missing:
        raise ValueError(f"{missing} bytes are missing" if missing > 0 else f"{-missing} bytes too many")
    return shapes, dtypes, content


def check_stored(folder: Path, what: str) -> None:
    """See that the files of a folder are what was written, where it has a manifest, that none is cut short, and that
    its configuration is not of a model that would never be built.

    Args:
        folder: Of a model or an adapter.
        what: What the message calls it.

    Raises:
        LoadingError: A file is damaged, or an index of tensors names one in another folder; it is named.
    """
    try:
        is_known = check_folder(folder)
    except DamagedError as error:
        raise LoadingError(f"{what} cannot be loaded: {error}") from error
    for index in sorted(folder.glob("*.index.json")):
        for name in _named_files(index):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise LoadingError(
                    f"{what} cannot be loaded: {index} names {name}, which is elsewhere: copy or download it again"
                )
    tensors = 0
    for file in () if is_known and not _layers(folder) else sorted(folder.glob("*.safetensors")):
        try:
            tensors += len(read_header(file)[0])
        except (OSError, ValueError) as error:
            raise LoadingError(
                f"{what} cannot be loaded: {file} cannot be read: {error}; copy or download it again"
            ) from error

    for setting, count in _layers(folder).items():
        if count > tensors:
            raise LoadingError(
                f"{what} cannot be loaded: {folder / 'config.json'} says {setting}={count}, and its files have "
                f"{tensors} tensors, of which every layer has some: restore it"
            )


def _named_files(index: Path) -> list[str]:
    """The files of tensors that an index names."""
    try:
        named = json_value(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # said where it is read
        return []
    return sorted({name for name in named if isinstance(name, str)})


def check_patterns(folder: Path, what: str) -> None:
    """See that no regular expression of an adapter's configuration keeps PEFT busy for ever.

    Raises:
        LoadingError: One may; the file and the setting are named.
    """
    file = folder / "adapter_config.json"
    try:
        config = json_value(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # said where it is read
        return
    for setting in ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"):
        given = config.get(setting) if isinstance(config, dict) else None
        for pattern in list(given) if isinstance(given, dict) else [given]:
            try:
                if isinstance(pattern, str):
                    check_pattern(pattern)
            except ValueError as error:
                raise LoadingError(f"{what} cannot be loaded: {file}, {setting}: {error}") from error


_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")
_MANY_LAYERS = 512
"""So many are built in seconds, whatever the files have: a configuration may be of parts that were not saved."""


def _layers(folder: Path) -> dict[str, int]:
    """Numbers of layers in the configuration of a model, its parts' too, that are so large that they are doubted."""
    try:
        left: list[Any] = [json_value((folder / "config.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError):  # said where it is read
        return {}
    found: dict[str, int] = {}
    while left:
        part = left.pop()
        if not isinstance(part, dict):
            continue
        left += part.values()
        for name in _LAYERS:
            count = part.get(name)
            if isinstance(count, int) and count > _MANY_LAYERS:
                found[name] = max(count, found.get(name, 0))
    return found


_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "*.tiktoken", "tekken.json")


def _damaged_in(folder: Path) -> str | None:
    """A file in the folder of a model or an adapter that is damaged or missing, for where a library cannot read it."""
    for file in sorted(folder.glob("*.json")):
        try:
            json_value(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{file} cannot be read: {error or repr(error)}"
    is_adapter = (folder / "adapter_config.json").is_file()
    for has, wanted in ((is_adapter, _ADAPTERS), ((folder / "config.json").is_file(), _TOKENIZERS)):
        if has and not any(file for name in wanted for file in folder.glob(name)):
            return f"{folder / wanted[0]} is missing"
    return None


@contextmanager
def reading(failure: str, hint: str = "", folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Whatever a library stumbles over while it reads a model's or an adapter's files becomes one error.

    What a damaged or hostile file makes of a reader is not known beforehand: any exception is meant. The library's own
    traceback is in the log, at the level of debugging.

    Args:
        failure: The beginning of the message: what cannot be done, naming the files.
        hint: Its end.
        folder: With the files, to say which is damaged or missing; a name on the Hub is none.

    Raises:
        LoadingError: Something cannot be read.
    """
    try:
        yield
    except CorsaError:
        raise
    except Exception as error:
        logger.debug(failure, exc_info=True)
        damaged = _damaged_in(Path(folder)) if folder is not None and Path(folder).is_dir() else None
        if damaged is not None:
            raise LoadingError(f"{failure}: {damaged}; copy or download it again") from error
        said = str(error) if isinstance(error, OSError | ValueError | RuntimeError | ImportError) else repr(error)
        raise LoadingError(f"{failure}: {said or repr(error)}{hint}") from error


def auto_class(name: str, revision: str | None = None, trust_remote_code: bool | None = None, **_: Any) -> Any:
    """The class of transformers that loads all that a checkpoint holds. Keywords are those of ``from_pretrained``."""
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # of an adapter's folder, for instance, which says what its base is
        return AutoModelForCausalLM
    sees = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if sees is None or sees.__name__ not in (config.architectures or ()):
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def refuse_missing(info: dict[str, Any], what: str) -> None:
    """Refuse a checkpoint without all tensors of the model: transformers makes up the others at random.

    Args:
        info: Of ``from_pretrained(..., output_loading_info=True)``.
        what: The subject of the message.

    Raises:
        LoadingError: Some are missing.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise LoadingError(
            f"{what} cannot be loaded: {len(missing)} of its tensors are missing ({names}), and random ones would be "
            "in their place; copy or download it again"
        )
