"""Statistics of keys as a folder.

``statistics.json`` says what there is and binds it together; for each layer, ``layer_4.safetensors`` has the ``moment``
(d, d) and, if there is one, the ``sample`` (d, S), and ``layer_4.eigen.safetensors`` the ``eigenvalues`` (d,) and the
``eigenvectors`` (d, d), one per *row* in the order of the eigenvalues, so that some of them are one piece of the file.
Of E routed experts the moment is (E, w, w) with w = d / E, and there are E w eigenvalues and rows of w, expert after
expert.

A manifest (:mod:`corsa_plugins.manifest`) has the checksums of all; each large file is compared with its own when it is
first read. Statistics that were written before there were manifests are read with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from corsa_plugins.alphaedit.solver.eigenbasis import Eigenbasis, FileVectors, check_moment
from corsa_plugins.alphaedit.solver.side_by_side import SideBySide
from corsa_plugins.alphaedit.statistics.layer import LayerStatistics, StatisticsError
from corsa_plugins.files import atomic_write_tensors, atomic_write_text
from corsa_plugins.manifest import MANIFEST as CHECKSUMS
from corsa_plugins.manifest import DamagedError, checksums, read_manifest, write_manifest
from corsa_plugins.manifest import Manifest as Checksums
from corsa_plugins.model.identity import Fingerprint, FingerprintError
from corsa_plugins.parsing import json_value
from corsa_plugins.paths import user_path

__all__ = ["MANIFEST", "StatisticsWriter", "StoredStatistics", "read_statistics", "refuse_strangers"]

logger = logging.getLogger(__name__)

MANIFEST = "statistics.json"
_VERSION = 1
_FLOAT64_WIDTH = 4096


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder in which statistics would replace files that are not of statistics.

    Raises:
        NotADirectoryError: It is a file.
        StatisticsError: There is such a file; the message names it.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder for the statistics")
    for file in sorted(folder.glob("layer_*.safetensors")):
        if not _is_ours(file):
            raise StatisticsError(f"{file} is not of statistics, or damaged, and in the way: name another folder")


def _is_ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return {"statistics", "layer"} <= set(opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


class StatisticsWriter:
    """Writes statistics layer by layer, so that one layer is in memory at a time.

    Args:
        directory: The folder; made if it is not there.
        fingerprint: Of the model.
        about: How the statistics were collected.

    Raises:
        NotADirectoryError: It is a file.
        StatisticsError: It holds files of others under the names of layers.
    """

    def __init__(
        self, directory: str | os.PathLike[str], fingerprint: Fingerprint | None, about: Mapping[str, Any]
    ) -> None:
        self.folder = user_path(directory)
        refuse_strangers(self.folder)
        self.fingerprint = fingerprint
        self.about = about
        self._id = secrets.token_hex(8)  # in every file: those of other statistics do not have it
        self._layers: dict[str, Any] = {}

    def add(self, layer: int, statistics: LayerStatistics) -> None:
        """Write the files of one layer; computes its eigenvectors if that has not been done.

        Raises:
            OSError: A file cannot be written.
            MomentError: The moment is no second moment.
        """
        sample, moment, basis = statistics.sample(), statistics.moment(), statistics.basis()
        exact = torch.float64 if moment.shape[-1] <= _FLOAT64_WIDTH else torch.float32
        tensors = {"moment": moment.to(exact)}
        if sample is not None:
            tensors["sample"] = sample.to(torch.float32)
        bases = basis.parts if isinstance(basis, SideBySide) else (basis,)
        eigen = {
            "eigenvalues": torch.cat([each.values.to(torch.float64) for each in bases]),
            "eigenvectors": torch.cat([rows for each in bases for _, rows in each.blocks(len(each.values))]),
        }
        # From here on the folder is not whole, and says so, until the last file is there.
        for name in (MANIFEST, CHECKSUMS):
            (self.folder / name).unlink(missing_ok=True)
        files = {}
        for name, content in ((f"layer_{layer}.safetensors", tensors), (f"layer_{layer}.eigen.safetensors", eigen)):
            atomic_write_tensors(self.folder / name, content, {"statistics": self._id, "layer": str(layer)})
            files[name] = (self.folder / name).stat().st_size
        self._layers[str(layer)] = {
            "width": statistics.width,
            "count": statistics.count,
            "sample": 0 if sample is None else sample.shape[1],
            **({"taken": list(statistics.taken)} if statistics.taken else {}),
            "files": files,
        }

    def finish(self) -> Path:
        """Remove layers of earlier statistics, and write ``statistics.json``, which makes the folder whole.

        Returns:
            Its path.
        """
        content = {
            "version": _VERSION,
            "id": self._id,
            "layers": self._layers,
            "about": dict(self.about),
            "fingerprint": None if self.fingerprint is None else self.fingerprint.as_dict(),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        written = {name for layer in self._layers.values() for name in layer["files"]}
        described = {MANIFEST: hashlib.sha256(text.encode()).hexdigest()}
        write_manifest(self.folder, {**checksums(self.folder, sorted(written)), **described})
        for other in self.folder.glob("layer_*.safetensors"):
            if other.name not in written and _is_ours(other):
                other.unlink()
        return atomic_write_text(self.folder / MANIFEST, text)


@dataclass(frozen=True)
class FileStatistics:
    """Statistics of one layer in a folder; every method reads its file anew."""

    folder: Path
    number: int
    width: int
    count: int
    n_sampled: int
    checksums: Checksums | None = None
    taken: tuple[int, ...] = ()

    @property
    def _moment_file(self) -> Path:
        return self.folder / f"layer_{self.number}.safetensors"

    @property
    def _eigen_file(self) -> Path:
        return self.folder / f"layer_{self.number}.eigen.safetensors"

    def _read(self, file: Path, name: str) -> Tensor:
        try:
            if self.checksums is not None:
                self.checksums.check(file.name)
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)
        except DamagedError as error:
            raise StatisticsError(f"{error}; or collect the statistics again") from error
        except (SafetensorError, OSError) as error:
            raise StatisticsError(f"{file} cannot be read: {error}") from error

    def moment(self) -> Tensor:
        moment = self._read(self._moment_file, "moment")
        for each in moment if moment.dim() == 3 else (moment,):
            check_moment(each, f"{self._moment_file}: the second moment")
        return moment

    def sample(self) -> Tensor | None:
        return self._read(self._moment_file, "sample") if self.n_sampled else None

    def basis(self) -> Eigenbasis:
        count = len(self.taken) or 1
        by_part = self._read(self._eigen_file, "eigenvalues").reshape(count, -1)
        if not by_part.isfinite().all() or (by_part.diff() < 0).any() or float(by_part.min()) < 0:
            raise StatisticsError(f"{self._eigen_file}: the eigenvalues are damaged; collect the statistics again")
        width = by_part.shape[1]
        bases = [
            Eigenbasis(values, FileVectors(self._eigen_file, "eigenvectors", first=number * width))
            for number, values in enumerate(by_part)
        ]
        return SideBySide.of(bases) if self.taken else bases[0]


class StoredStatistics(NamedTuple):
    """What a folder holds: the parts of a :class:`~corsa_plugins.alphaedit.KeyStatistics`, in its order."""

    by_layer: dict[int, LayerStatistics]
    fingerprint: Fingerprint | None
    about: dict[str, Any]
    source: str


def read_statistics(directory: str | os.PathLike[str]) -> StoredStatistics:
    """Open a folder of statistics; what is large is read when it is asked for.

    Raises:
        StatisticsError: There are none, or files are missing, cut short, or from different statistics.
    """
    folder = user_path(directory)
    manifest = folder / MANIFEST
    try:
        content = json_value(manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StatisticsError(_not_there(folder)) from None
    except ValueError as error:
        raise StatisticsError(f"{manifest} is damaged: {error}") from error
    try:
        kept = _checksums(folder)
        if content["version"] != _VERSION:
            raise StatisticsError(f"{manifest} is of version {content['version']}, this program reads {_VERSION}")
        described = content["fingerprint"]
        fingerprint = None if described is None else Fingerprint.from_dict(described)
        layers: dict[int, LayerStatistics] = {}
        for name, described in content["layers"].items():
            width, count, sampled = (int(described[number]) for number in ("width", "count", "sample"))
            taken = tuple(int(number) for number in described.get("taken", ()))
            if taken and width % len(taken):
                raise ValueError(f"layer {name}: keys {width} wide of {len(taken)} experts")
            layer = FileStatistics(folder, int(name), width, count, sampled, kept, taken)
            for file, size in described["files"].items():
                _check_file(folder / file, int(size), content["id"], layer)
            layers[layer.number] = layer
        about = dict(content["about"])
    except FingerprintError as error:
        raise StatisticsError(f"{manifest}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, StatisticsError):
            raise
        raise StatisticsError(f"{manifest} is not what this program writes: {type(error).__name__} {error}") from error
    return StoredStatistics(layers, fingerprint, about, f"the statistics in {folder}")


def _checksums(folder: Path) -> Checksums | None:
    """Of the files, those of the description compared already; ``None`` for statistics from before there were any."""
    try:
        kept = read_manifest(folder)
        if kept is None:
            logger.warning(
                "%s has no %s with checksums, so damage to it may go unnoticed: it is from before they had one; "
                "collect them again, or save what KeyStatistics.load gives to another folder",
                folder,
                CHECKSUMS,
            )
        else:
            kept.check(MANIFEST)
    except DamagedError as error:
        raise StatisticsError(f"{error}; or collect the statistics again") from error
    return kept


def _not_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder of statistics; collect them with corsa stats"
    if (folder / "partial.safetensors").exists():
        return f"{folder}: the statistics are not finished; take them up again with the corsa stats they began with"
    return f"{folder}: no statistics, {MANIFEST} is missing; collect them with corsa stats"


def _check_file(path: Path, size: int, identity: str, layer: FileStatistics) -> None:
    """Size, identity and shapes: reads the header only."""
    if not path.is_file():
        raise StatisticsError(f"{path} is missing: copy the whole folder, or collect the statistics again")
    if path.stat().st_size != size:
        raise StatisticsError(
            f"{path} has {path.stat().st_size} bytes, {size} were written: it is cut short or changed"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise StatisticsError(f"{path} is damaged: {error}") from error
    if metadata.get("statistics") != identity or metadata.get("layer") != str(layer.number):
        raise StatisticsError(f"{path} is of other statistics than {MANIFEST}: do not mix the files of two folders")
    d, count = layer.width, len(layer.taken)
    own = d // (count or 1)
    moment = (count, own, own) if count else (d, d)
    wanted: dict[str, tuple[int, ...]] = (
        {"eigenvalues": (d,), "eigenvectors": (d, own)}
        if path.name.endswith(".eigen.safetensors")
        else {"moment": moment, **({"sample": (d, layer.n_sampled)} if layer.n_sampled else {})}
    )
    if shapes != wanted:
        raise StatisticsError(f"{path} holds {shapes}, and {MANIFEST} says {wanted}")
