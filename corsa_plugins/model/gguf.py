"""GGUF files, the format of llama.cpp, as models to edit: read through transformers, their weights unpacked.

A GGUF file holds the configuration, the tokenizer and its chat template as well. Its weights, mostly in blocks of a few
bits, are unpacked once, when it is loaded; what is edited, trained and saved is an ordinary model of that precision,
and what is saved is an ordinary Hugging Face folder.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import LoadingError, SettingError, require
from corsa_plugins.model.stored import refuse_missing
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SUFFIX", "find_gguf", "load_gguf_model", "load_gguf_tokenizer", "refuse_gguf"]

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_OWN_WEIGHTS = ("*.safetensors", "*.bin", "adapter_config.json")
_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, NotImplementedError, struct.error)
"""What the readers raise for a file that is cut short, damaged or of another architecture."""


def find_gguf(model: str | os.PathLike[str]) -> Path | None:
    """The GGUF file that is meant by the name of a model: the file itself, or the only one in a folder.

    Args:
        model: A ``.gguf`` file, a folder, or a name on the Hub.

    Returns:
        ``None`` for a folder that has weights of transformers' own beside it or no such file, and for names on the Hub.

    Raises:
        LoadingError: There is no such file; or the folder has several, which are named.
    """
    path = user_path(model)
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        if not path.is_file():
            raise LoadingError(f"model {os.fspath(model)}: no such file (looked in {Path.cwd()})")
        return path
    if not path.is_dir() or any(file for pattern in _OWN_WEIGHTS for file in path.glob(pattern)):
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise LoadingError(f"model {os.fspath(model)} has several GGUF files, {names}: name one, such as {files[0]}")
    return files[0] if files else None


def refuse_gguf(model: str | os.PathLike[str], what: str) -> None:
    """Where models are read by others than transformers: refuse a GGUF file, and say how to make a model of it.

    Raises:
        SettingError: ``model`` means a GGUF file, which ``what`` does not read.
        LoadingError: As for :func:`find_gguf`.
    """
    file = find_gguf(model)
    if file is not None:
        raise SettingError(
            f"{file} is a GGUF file, which {what} does not read: write it out first, as in corsa atlas --model {file} "
            "--output FOLDER, or with save_pretrained of both results of corsa_plugins.model.loading.load_model, and "
            "name that folder"
        )


def load_gguf_tokenizer(file: Path, **settings: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, with its chat template.

    Args:
        file: As :func:`find_gguf` gives it.
        settings: More arguments of ``from_pretrained``.

    Raises:
        LoadingError: It is no GGUF file, is cut short, or transformers does not read its architecture.
        MissingExtraError: gguf or accelerate is not installed.
    """
    from transformers import AutoTokenizer

    with _reading(file):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            os.fspath(file.parent), gguf_file=file.name, **settings
        )
    return tokenizer


def load_gguf_model(file: Path, dtype: Any = "auto", **settings: Any) -> PreTrainedModel:
    """The causal language model in a GGUF file, its weights unpacked: it can be trained, edited and saved like any.

    Args:
        file: As :func:`find_gguf` gives it.
        dtype: As ``from_pretrained`` takes it. ``"auto"`` is float32, in which every GGUF type is exact: blocks of a
            few bits have no precision to go by.
        settings: More arguments of ``from_pretrained``.

    Raises:
        LoadingError: As for :func:`load_gguf_tokenizer`; or tensors of the model are missing.
        MissingExtraError: gguf or accelerate is not installed.
    """
    from transformers import AutoModelForCausalLM

    if settings.get("quantization_config") is None:
        settings |= {"quantization_config": _unpacked()}
    with _reading(file):
        model, info = AutoModelForCausalLM.from_pretrained(
            os.fspath(file.parent),
            gguf_file=file.name,
            dtype="float32" if dtype in (None, "auto") else dtype,
            output_loading_info=True,
            **settings,
        )
    refuse_missing(info, f"model {file}")
    # By what is left of its origin transformers would take the model for a quantised one, and not save it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    model.is_quantized = False
    model.name_or_path = model.config._name_or_path = os.fspath(file)
    loaded: PreTrainedModel = model
    return loaded


def _unpacked() -> Any:
    """What tells transformers not to keep blocks as they are, where it could: they cannot be edited."""
    try:
        from transformers import GgufConfig
    except ImportError:  # before 5.20 there was no choice
        return None
    return GgufConfig(dequantize=True)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What may go wrong with a file, as errors that name it."""
    for module in ("gguf", "accelerate"):
        require(module, "gguf", what=f"reading {file.name}")
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise LoadingError(f"model {file} cannot be loaded: it is no GGUF file, whatever its name says")
    try:
        yield
    except _UNREADABLE as error:
        if "not supported" in str(error):
            hint = "transformers does not read this architecture from GGUF; use the model's Hugging Face folder"
        else:
            hint = "is the file whole? Compare its size with where it came from"
        raise LoadingError(f"model {file} cannot be loaded: {error}; {hint}") from error
