"""What a model's folder says about itself without loading it: its files, its tensors' shapes, its vocabulary."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from corsa_plugins.errors import CorsaError
from corsa_plugins.manifest import DamagedError, check_folder
from corsa_plugins.model.stored import read_header
from corsa_plugins.parsing import json_value

__all__ = ["ModelError", "StoredModel", "read_stored_model"]

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


class ModelError(CorsaError, ValueError):
    """A model's folder that is not complete."""


@dataclass(frozen=True)
class StoredModel:
    """A model on disk.

    Attributes:
        path: Its folder.
        config: The contents of ``config.json``.
        shapes: The shape of every tensor.
        dtypes: The type of every tensor as its file has it, ``"BF16"`` for instance.
        size: Bytes of all tensors.
        files: The names of the files with the weights.
    """

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    size: int
    dtypes: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The class of the model, or its type where no class is given."""
        return str((self.config.get("architectures") or [self.config.get("model_type")])[0])

    def vocabulary(self) -> dict[str, int] | None:
        """Token to id, from ``tokenizer.json``; ``None`` if there is none, or none with a list of tokens."""
        try:
            saved = json_value((self.path / "tokenizer.json").read_text(encoding="utf-8"))
            tokens = saved["model"]["vocab"]
            if isinstance(tokens, list):
                tokens = {token: index for index, (token, _) in enumerate(tokens)}
            return {**tokens, **{token["content"]: token["id"] for token in saved.get("added_tokens", [])}}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def read_stored_model(path: Path, label: str) -> StoredModel:
    """Look at a model's folder: its configuration and the headers of its weight files.

    Args:
        path: The folder.
        label: What errors call the model.

    Raises:
        ModelError: There is no configuration, a shard is missing or cut short, or there are no weights; or a file is
            not what its manifest says.
    """
    if not path.is_dir():
        raise ModelError(f"model {label}: {path} is no folder")
    try:
        check_folder(path)
    except DamagedError as error:
        raise ModelError(f"model {label}: {error}") from error
    try:
        config = json_value((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model {label}: {path} has no config.json: is it the folder of a model?") from None
    except ValueError as error:
        raise ModelError(f"model {label}: {path / 'config.json'} is not JSON: {error}") from error
    # in the order in which mergekit looks for them
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if index.exists():
            names = _indexed_files(index, label)
        elif (path / name).exists():
            names = (name,)
        else:
            continue
        files = [path / file for file in names]
        for file in files:
            if not file.exists():
                raise ModelError(f"model {label}: shard {file.name} is missing from {path}: copy or download it again")
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        read = _read_pickled if name.endswith(".bin") else _read_header
        size = sum(read(file, label, shapes, dtypes) for file in files)
        return StoredModel(path, config, shapes, size, dtypes, names)
    raise ModelError(f"model {label}: {path} has no weights (model.safetensors or pytorch_model.bin)")


def _indexed_files(index: Path, label: str) -> tuple[str, ...]:
    try:
        names = sorted(set(json_value(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model {label}: {index} is not an index of shards: {error!r}") from error
    if outside:
        raise ModelError(f"model {label}: {index} names {outside[0]}, which is not in the model's folder")
    return tuple(names)


def _read_pickled(file: Path, label: str, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> int:
    """As :func:`_read_header`, of a file of ``torch.save``, which is mapped and nothing in it is run. A file of before
    torch 1.6 is no archive, and is read."""
    is_archive = zipfile.is_zipfile(file)
    with open(file, "rb") as stream:
        begin = stream.read(2)
    if not is_archive and not begin.startswith(b"\x80"):
        raise ModelError(f"model {label}: {file} is no file of torch, or cut short; copy or download it again")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # of old and of damaged files; what is wrong with them is said below, and nothing is run either
        named = []
    more = [name for name in named if not name.startswith("numpy.")]
    if more:
        raise ModelError(
            f"model {label}: {file} holds more than tensors ({', '.join(more)}), which could run, and is not read: "
            "save the model as safetensors, if you trust it"
        )
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
        by_name = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {label}: {file} holds something else than tensors by name, or is damaged ({reason}); copy or "
            "download it again, or save the model as safetensors"
        ) from error
    shapes.update({name: tuple(tensor.shape) for name, tensor in by_name.items()})
    dtypes.update({name: _DTYPES.get(tensor.dtype, str(tensor.dtype)) for name, tensor in by_name.items()})
    return sum(tensor.numel() * tensor.element_size() for tensor in by_name.values())


def _read_header(file: Path, label: str, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> int:
    """Add the shapes and types in a safetensors file to ``shapes`` and ``dtypes``; the bytes of its tensors."""
    try:
        here, types, size = read_header(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {label}: {file} cannot be read: {error}; copy or download it again") from error
    shapes.update(here)
    dtypes.update(types)
    return size
