"""What other tools have computed: second moments of ROME, MEMIT and EasyEdit, and AlphaEdit's projectors.

Neither says which model it was made of, so the widths are all that can be checked.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.alphaedit.solver.nullspace import NullSpace
from corsa_plugins.alphaedit.statistics.layer import LayerStatistics, MomentStatistics, StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, find_architecture
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["read_moments", "read_projectors"]

logger = logging.getLogger(__name__)

File = str | os.PathLike[str]


def read_moments(
    files: File | Iterable[File] | Mapping[int, File],
    model: PreTrainedModel | None = None,
    *,
    architecture: Architecture | None = None,
) -> KeyStatistics:
    """Second moments in ``.npz`` files as ROME, MEMIT and EasyEdit write them (``layer_stats``).

    They hold the *sum* of k k^T (``mom2.mom2``) and the number of tokens (``mom2.count``), and neither a fingerprint
    nor a sample of keys: they are taken with a warning. :meth:`KeyStatistics.save` keeps them with their eigenvectors.

    Args:
        files: One file, several, or a folder with them: the layer is read from names such as
            ``model.layers.4.mlp.down_proj_float32_mom2_100000.npz``. Or files by layer.
        model: What to check the widths with.
        architecture: Where the model's parts are, if they had to be named by hand.

    Raises:
        StatisticsError: A file is no such file; its layer cannot be told; or its width is not the model's.
        MomentError: The matrix is no second moment.
    """
    by_layer: dict[int, LayerStatistics] = {}
    for layer, path in _by_layer(files).items():
        total, count = _read_sum(path)
        by_layer[layer] = MomentStatistics(total.div_(count), count, name=f"{path} (layer {layer})")
    names = ", ".join(f"layer {layer}" for layer in sorted(by_layer))
    statistics = KeyStatistics(by_layer, source=f"the second moments of {names}")
    logger.warning(
        "%s do not say which model they were made of: make sure it is this one. They come without a sample of keys, so "
        "the conflict with preserved keys (Eq. 3) is not measured",
        statistics.source,
    )
    if model is not None:
        statistics.check(model, architecture or find_architecture(model))
    return statistics


def _by_layer(files: File | Iterable[File] | Mapping[int, File]) -> dict[int, Path]:
    if isinstance(files, Mapping):
        return {int(layer): user_path(path) for layer, path in files.items()}
    if isinstance(files, str | os.PathLike):
        path = user_path(files)
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise StatisticsError(f"{path}: no .npz file in this folder")
    by_layer: dict[int, Path] = {}
    for file in files:
        path = user_path(file)
        number = re.search(r"\.(\d+)\.", path.name)
        if number is None:
            raise StatisticsError(f"{path}: the name does not say which layer it is of: pass {{layer: file}}")
        layer = int(number[1])
        if layer in by_layer:
            raise StatisticsError(f"{by_layer[layer]} and {path} are both of layer {layer}: pass {{layer: file}}")
        by_layer[layer] = path
    return by_layer


def _read_sum(path: Path) -> tuple[Tensor, int]:
    """The sum of k k^T (d, d) in float64, and the number of keys."""
    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as content:
            names = {name.rpartition("mom2.")[2] if "mom2." in name else name: name for name in content.files}
            if "mom2" not in names or "count" not in names:
                raise StatisticsError(
                    f"{path} holds {', '.join(content.files) or 'nothing'}: no mom2.mom2 and mom2.count, as a second "
                    "moment of ROME, MEMIT or EasyEdit has"
                )
            total = torch.from_numpy(content[names["mom2"]].astype(numpy.float64))
            count = int(content[names["count"]])
    except FileNotFoundError:
        raise StatisticsError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, StatisticsError):
            raise
        raise StatisticsError(f"{path} is no .npz file, or a damaged one: {error}") from error
    if count < 1:
        raise StatisticsError(f"{path}: the second moment is of {count} tokens")
    return total, count


def read_projectors(path: File, layers: Sequence[int], model: PreTrainedModel | None = None) -> dict[int, NullSpace]:
    """The null spaces of a ``null_space_project.pt`` of AlphaEdit or EasyEdit.

    The file holds the projectors P (layers, d, d) of the layers that were edited, in their order; which these are, it
    does not say. Nor are there eigenvalues, so AlphaEdit+'s search has no order to add eigenvectors in. O(d^3) for each
    layer, and one projector at a time is read.

    Args:
        path: The file, or one with a single matrix.
        layers: Which layers the projectors are of, in their order.
        model: What to check the widths with.

    Raises:
        StatisticsError: It is no such file, holds another number of projectors, or those of another width.
        MomentError: A matrix is no orthogonal projector.
    """
    path = user_path(path)
    try:
        # only an archive can be mapped; what torch wrote before 1.6 is none
        stack: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise StatisticsError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except Exception as error:  # torch.load says a damaged file in many ways
        raise StatisticsError(f"{path} cannot be read: {error}") from error
    if not isinstance(stack, Tensor) or stack.dim() not in (2, 3):
        raise StatisticsError(f"{path} holds no projectors: they are one tensor, (layers, d, d)")
    stack = stack[None] if stack.dim() == 2 else stack
    if len(stack) != len(layers) or len(set(layers)) != len(layers):
        raise SettingError(f"layers are {tuple(layers)}, and {path} holds {len(stack)} projectors: name each one's")
    architecture = None if model is None else find_architecture(model)
    spaces = {}
    for layer, projector in zip(layers, stack, strict=True):
        width = len(projector) if architecture is None else architecture.edited(layer).d_in
        if width != len(projector):
            raise StatisticsError(
                f"{path}: the projector of layer {layer} is {len(projector)} wide, and its keys are {width}: it is of "
                "another model"
            )
        spaces[layer] = NullSpace.from_projector(projector, f"the projector of layer {layer} in {path}")
    return spaces
