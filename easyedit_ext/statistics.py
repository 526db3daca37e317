"""Where the preserved keys' statistics come from, with EasyEdit's fields.

In this order:

1. ``stats_dir``, or a folder in it, written by ``corsa stats`` or here, of this very model and with all its layers;
2. EasyEdit's own second moments in ``stats_dir``: ``<model>/<mom2_dataset>_stats/<module>_..._mom2_....npz``;
3. ``P_loc``, AlphaEdit's projector, if the file is there. It has no order of eigenvectors, so the search is off;
4. collected now from ``mom2_dataset``, into ``stats_dir``, for the next time.

What is used is logged, and said in the report.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from corsa_plugins.alphaedit.editor import PreservedKeys
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.foreign import read_moments, read_projectors
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.alphaedit.statistics.storage import MANIFEST
from corsa_plugins.alphaedit.statistics.texts import TextError, read_texts
from corsa_plugins.errors import CorsaError
from corsa_plugins.model.architecture import Architecture
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_ext.hparams import AlphaEditPlusHyperParams

__all__ = ["FoundKeys", "ProjectorKeys", "preserved_keys"]

logger = logging.getLogger(__name__)

DATASETS = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
"""EasyEdit's names of data sets, and where they are on the Hugging Face Hub."""


@dataclass(frozen=True)
class FoundKeys:
    """Statistics of the preserved keys.

    Attributes:
        statistics: What the editor asks.
        source: Where they came from, in words.
    """

    statistics: PreservedKeys
    source: str


@dataclass(frozen=True)
class ProjectorKeys:
    """Null spaces from AlphaEdit's projectors, which know nothing else of the keys.

    Attributes:
        spaces: By layer.
    """

    spaces: Mapping[int, NullSpace]

    def check(self, model: PreTrainedModel, architecture: Architecture | None = None) -> None:
        """Nothing: a projector does not say which model it is of. The editor sees to the widths."""

    def null_space(self, layer: int, rule: NullSpaceRule) -> NullSpace:
        """That of the projector, whatever the rule: it was applied when the projector was made."""
        return self.spaces[layer]

    def sample(self, layer: int) -> Tensor | None:
        """None was kept."""
        return None


def preserved_keys(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    hparams: AlphaEditPlusHyperParams,
    architecture: Architecture,
    known: dict[tuple[Any, ...], FoundKeys],
) -> FoundKeys:
    """The statistics for an edit with these hyper-parameters.

    Args:
        model: The model to edit.
        tokenizer: Its tokenizer.
        hparams: Of them the fields named above.
        architecture: Where the model's parts are.
        known: What earlier calls found for this model, by the fields it depends on; what is found now is added.

    Raises:
        StatisticsError: There are none, and none can be collected or written; the message says where they were looked
            for.
        CorsaError: Those there are cannot be used.
    """
    where = (
        hparams.stats_dir,
        hparams.P_loc,
        hparams.mom2_dataset,
        hparams.mom2_dtype,
        tuple(hparams.layers),
        hparams.mom2_length,
        hparams.mom2_pack,
        # a weight elsewhere may have changed since, by R-SFT for one: its statistics are others
        Fingerprint.of(model, architecture).digest,
    )
    if where not in known:
        found = (
            _ours(model, hparams, architecture)
            or _easyedits(model, hparams, architecture)
            or _projector(hparams)
            or _collected(model, tokenizer, hparams, architecture)
        )
        logger.info("statistics of the preserved keys: %s", found.source)
        known[where] = found
    return known[where]


def _ours(model: PreTrainedModel, hparams: AlphaEditPlusHyperParams, architecture: Architecture) -> FoundKeys | None:
    folder = user_path(hparams.stats_dir)
    if (folder / MANIFEST).is_file():  # named by the user: if these do not fit, the editor says so
        statistics = KeyStatistics.load(folder)
        for layer in hparams.layers:
            statistics.layer(layer)
        return FoundKeys(statistics, f"the statistics in {folder}")
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")) + sorted(folder.glob(f"*/*/{MANIFEST}")):
        try:
            statistics = KeyStatistics.load(manifest.parent)
            if statistics.fingerprint is None or not set(hparams.layers) <= set(statistics.layers):
                continue
            statistics.check(model, architecture)
        except CorsaError as error:
            logger.info("not used: %s", error)
            continue
        return FoundKeys(statistics, f"the statistics in {manifest.parent}")
    return None


def _easyedits(
    model: PreTrainedModel, hparams: AlphaEditPlusHyperParams, architecture: Architecture
) -> FoundKeys | None:
    files: dict[int, Path] = {}
    for name in _names(model):
        folder = user_path(hparams.stats_dir) / name / f"{hparams.mom2_dataset}_stats"
        for layer in hparams.layers:
            stem = architecture.ffn(layer).down.name
            wanted = folder / f"{stem}_{hparams.mom2_dtype}_mom2_{hparams.mom2_n_samples}.npz"
            others = sorted(folder.glob(f"{stem}_*mom2*.npz"))
            if wanted.is_file() or others:
                files.setdefault(layer, wanted if wanted.is_file() else others[0])
    missing = [layer for layer in hparams.layers if layer not in files]
    if not files:
        return None
    if missing:
        there = next(iter(files.values())).parent
        raise StatisticsError(
            f"{there} has second moments of layers {', '.join(map(str, sorted(files)))} and none of "
            f"{', '.join(map(str, missing))}: add those, or name another stats_dir"
        )
    folders = ", ".join(sorted({str(path.parent) for path in files.values()}))
    return FoundKeys(read_moments(files, model, architecture=architecture), f"EasyEdit's second moments in {folders}")


def _projector(hparams: AlphaEditPlusHyperParams) -> FoundKeys | None:
    if hparams.P_loc is None or not user_path(hparams.P_loc).is_file():
        return None
    spaces = read_projectors(hparams.P_loc, hparams.layers)
    if hparams.search:
        logger.warning(
            "the null space is the projector %s, which does not say in what order eigenvectors would be added: there "
            "is no search. Collect statistics with `corsa stats` for one",
            hparams.P_loc,
        )
    return FoundKeys(ProjectorKeys(spaces), f"the projector {hparams.P_loc}, without a search")


def _collected(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    hparams: AlphaEditPlusHyperParams,
    architecture: Architecture,
) -> FoundKeys:
    name, config = DATASETS.get(hparams.mom2_dataset, (hparams.mom2_dataset, None))
    layers = "-".join(map(str, hparams.layers))
    digest = Fingerprint.of(model, architecture).digest
    data = re.sub(r"\W+", "_", hparams.mom2_dataset).strip("_")
    out = user_path(hparams.stats_dir) / f"{_names(model)[0]}-{digest}" / f"{data}-layers-{layers}"
    searched = f"there are no statistics of this model's layers {', '.join(map(str, hparams.layers))} in "
    searched += hparams.stats_dir + ("" if hparams.P_loc is None else f", nor a file {hparams.P_loc}")
    logger.warning("%s: collecting them from %s, up to %d tokens, into %s", searched, name, hparams.mom2_n_tokens, out)
    try:
        texts = _First(read_texts(name, config=config), hparams.mom2_n_samples)
        collected = collect_statistics(
            model,
            tokenizer,
            texts,
            hparams.layers,
            n_tokens=hparams.mom2_n_tokens,
            length=hparams.mom2_length,
            pack=hparams.mom2_pack,
            out=out,
            architecture=architecture,
            progress=True,
        )
    except (TextError, StatisticsError, OSError) as error:
        raise StatisticsError(
            f"{searched}, and none can be collected from mom2_dataset {hparams.mom2_dataset}: {error}. Name a text "
            "file there, or collect them with `corsa stats` and name the folder in stats_dir"
        ) from error
    return FoundKeys(collected, f"the statistics collected from {name} into {out}")


@dataclass(frozen=True)
class _First:
    """The first documents of a text; can be read again."""

    texts: Iterable[str]
    count: int

    def __iter__(self) -> Iterator[str]:
        return islice(iter(self.texts), self.count)


def _names(model: PreTrainedModel) -> list[str]:
    """What EasyEdit calls a model in the names of its statistics, now and in 2023."""
    path = str(getattr(model.config, "_name_or_path", "") or "").rstrip("/")
    return [path.rsplit("/")[-1], path.replace("/", "_")] if path else [str(model.config.model_type)]
