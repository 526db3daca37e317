"""Several PEFT adapters on one model: their names and their requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.loading import put_adapters
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["adapter_names", "load_adapters", "read_adapter_requests"]


def adapter_names(adapters: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What to call adapters: the last part of their paths, or as much of it as tells them apart.

    Raises:
        SettingError: One of them is given twice.
    """
    paths = [user_path(adapter).absolute().parts for adapter in adapters]
    if len(set(paths)) < len(paths):
        raise SettingError(f"--adapter {', '.join(map(str, adapters))}: name each adapter once")
    length = 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path[-length:]) for path in paths]


def read_adapter_requests(
    adapters: Sequence[str | os.PathLike[str]], files: Sequence[str | os.PathLike[str]] | None = None
) -> list[list[EditRequest]]:
    """The requests that each adapter was trained on.

    Args:
        adapters: Folders, or names on the Hub.
        files: One for each adapter; by default ``requests.jsonl`` in its folder, as ``corsa train`` writes it.

    Raises:
        SettingError: Not as many files as adapters, or no file in an adapter's folder.
        RequestError: A file cannot be read.
    """
    if files and len(files) != len(adapters):
        raise SettingError(
            f"{len(files)} files of requests for {len(adapters)} adapters: give one --requests for each --adapter, in "
            "the same order, or none"
        )
    if not files:
        files = [user_path(adapter) / "requests.jsonl" for adapter in adapters]
        pairs = zip(adapters, files, strict=True)
        missing = [os.fspath(adapter) for adapter, file in pairs if not os.path.isfile(file)]
        if missing:
            raise SettingError(f"{', '.join(missing)}: no requests.jsonl beside the adapter; give --requests for each")
    return [read_requests(file) for file in files]


def load_adapters(model: PreTrainedModel, adapters: Sequence[str | os.PathLike[str]]) -> tuple[Any, list[str]]:
    """Put several PEFT adapters on one model.

    Args:
        model: The base model.
        adapters: Folders, or names on the Hub.

    Returns:
        The ``PeftModel``, in evaluation mode, the first adapter active; and the adapters' names in it, ``"1"``,
        ``"2"``, ... in their order.

    Raises:
        LoadingError: There is no such adapter, or it is not one of this model.
        SettingError: There are none.
        MissingExtraError: PEFT is not installed.
    """
    if not adapters:
        raise SettingError("no adapters: give at least one")
    names = [str(number) for number in range(1, len(adapters) + 1)]
    loaded = put_adapters(model, dict(zip(names, adapters, strict=True)))
    loaded.set_adapter(names[0])
    return loaded, names
