"""Collecting statistics of the keys to preserve: text is streamed through the model once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from corsa_plugins.alphaedit.statistics.capture import BrokenKeysError, KeyCapture
from corsa_plugins.alphaedit.statistics.checkpoint import Checkpoint, Identity, remove_outlived
from corsa_plugins.alphaedit.statistics.layer import LayerStatistics, MomentStatistics, StatisticsError
from corsa_plugins.alphaedit.statistics.packing import ResumeError, TokenRows
from corsa_plugins.alphaedit.statistics.plan import CollectionPlan, check_count, down_maps, usual_length
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.alphaedit.statistics.storage import MANIFEST, StatisticsWriter, refuse_strangers
from corsa_plugins.alphaedit.statistics.sums import KeySums
from corsa_plugins.alphaedit.statistics.texts import read_texts
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, LinearMap, find_architecture
from corsa_plugins.model.borrowing import eval_mode
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.processes import ALONE, Processes
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BrokenKeysError", "check_folder", "collect_statistics"]

logger = logging.getLogger(__name__)


# Sixteen parameters: one flat call, of which a user gives one and ``out``; what decides the result is a plan within.
def collect_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str] | str | os.PathLike[str],
    layers: Sequence[int],
    *,
    n_tokens: int,
    length: int | None = None,
    batch_size: int = 8,
    pack: bool = True,
    sample_size: int = 2048,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    checkpoint_seconds: float = 300,
    architecture: Architecture | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
) -> KeyStatistics:
    """Second moments E[k k^T] of the keys of some layers, over text, and a uniform sample of the keys.

    A key is the input of an FFN's down map at one token. All layers are collected in one pass, which ends at the
    highest of them; the model's head is never run. Every token counts, BOS among them: edits must spare it too. Of
    routed experts a key is weighted by its gate, and there is a second moment for each expert, over all tokens.

    Precision: on a CPU products are float64; on a GPU, and of half-precision keys, they are float32 (never TF32) over
    at most 4096 tokens each. All are added up in float64. Memory, beside the model's, on its device: a float64 d x d
    matrix for each layer, or each expert of one (1.6 GiB at a width of 14336), and one product while it is added.

    >>> collect_statistics(model, tokenizer, "text.jsonl", (4, 5, 6, 7, 8), n_tokens=10**6, out="s")  # doctest: +SKIP

    Args:
        model: A causal language model without an adapter. It is not changed, and runs in evaluation mode.
        tokenizer: Its tokenizer.
        texts: Documents, or the name of a file or a data set: see
            :func:`corsa_plugins.alphaedit.statistics.texts.read_texts`. To take work up again, they are given from the
            start; those that were read are passed over.
        layers: Which blocks, counted from 0.
        n_tokens: How many tokens to take. Fewer than 10 for each feature give a warning: directions that were not
            seen look like null space. Fewer than one are refused.
        length: Tokens in a row, by default 512, or what the model reads if that is less.
        batch_size: Rows per forward pass; changes the result by rounding only.
        pack: Fill rows with documents one after the other, the end-of-sequence token between them. Off, every document
            has a row of its own, or several, padded in the batch; padding never counts.
        sample_size: How many keys to keep of each layer; 0 keeps none.
        seed: Of the sample, which does not depend on ``batch_size``.
        out: A folder for the statistics. What has been collected is also kept in it from time to time, and after
            an error or Ctrl-C: called again with the same text and settings, the work is taken up where it was, with
            the result of an uninterrupted one. Without it, the statistics are in memory only.
        fresh: Begin anew, whatever is in ``out``.
        checkpoint_seconds: Time between two savings of the work so far.
        architecture: Where the model's parts are, if they had to be named by hand.
        progress: Show a progress bar.
        processes: That share the batches, each with the model and the text; all get the result, and the first writes
            it. With several there is no taking up of work.

    Returns:
        The statistics; those in ``out`` if it is given.

    Raises:
        SettingError: A setting is out of range; or there is no such layer.
        StatisticsError: ``out`` holds finished statistics and ``fresh`` is off; or the text is too short to give as
            many tokens as keys are wide.
        ResumeError: The work in ``out`` was done with another model, text or setting; the message says which.
        BrokenKeysError: Keys are NaN or infinite, naming the layer.
        TextError: The text cannot be read.
    """
    architecture = architecture or find_architecture(model)
    length = usual_length(model) if length is None else length
    plan = CollectionPlan(n_tokens, length, batch_size, bool(pack), sample_size, seed)
    plan.check_model(model)
    maps = down_maps(architecture, layers, n_tokens)
    folder = None if out is None else user_path(out)
    if folder is not None:
        check_folder(folder, fresh)
    if isinstance(texts, str | os.PathLike):
        texts = read_texts(texts)
    settings = {name: value for name, value in plan.as_dict().items() if name != "batch_size"}
    identity = Identity.of(model, tokenizer, architecture, maps, settings)
    folder = folder if processes.is_first else None
    checkpoint = None if folder is None else Checkpoint(folder, identity, checkpoint_seconds)
    experts = {layer: linear.experts for layer, linear in maps.items()}
    sums = KeySums({layer: linear.d_in for layer, linear in maps.items()}, plan.sample_size, plan.seed, experts)
    rows = TokenRows(texts, tokenizer, plan.length, plan.pack)
    if len(rows.prefix) >= plan.length:
        raise SettingError(f"length is {plan.length}: {len(rows.prefix)} tokens of a row are what the tokenizer adds")
    if checkpoint is not None:
        if processes.count > 1 and checkpoint.path.exists() and not fresh:
            raise ResumeError(
                f"{checkpoint.path} is unfinished work, which one process goes on with: call it without a launcher, or "
                "begin anew with fresh=True (corsa stats --fresh)"
            )
        checkpoint.remove() if fresh else checkpoint.resume(sums, rows)
    capture = KeyCapture(model, maps)
    keeping = checkpoint if processes.count == 1 else None  # the sums of one process are not those so far
    with eval_mode(model), capture, keeping or nullcontext():
        _read_through(capture, rows, sums, plan, keeping, progress and processes.is_first, processes)
    sums.gather(processes)
    if checkpoint is not None:
        checkpoint.keep(sums, now=True)  # eigenvectors may take longer than the text did
    check_count(sums.count, plan, maps, {layer: sums.taken(layer) for layer in maps})
    about = {
        **plan.as_dict(), "n_tokens": sums.count, "n_texts": sums.position.n_texts, "text": sums.position.digest,
        "dtype": identity.settings["dtype"], "model": identity.fingerprint.name,
    }  # fmt: skip
    return _finish(sums, maps, identity.fingerprint, about, folder, checkpoint)


def check_folder(folder: Path, fresh: bool) -> None:
    """Refuse a file, a folder with others' files in the place of ours, and one of finished statistics unless ``fresh``:
    before anything is loaded."""
    refuse_strangers(folder)
    if (folder / MANIFEST).exists() and not fresh:
        remove_outlived(folder / MANIFEST)
        raise StatisticsError(
            f"{folder} holds finished statistics: load them with KeyStatistics.load, name another folder, or have them "
            "replaced with fresh=True (corsa stats --fresh)"
        )


def _read_through(
    capture: KeyCapture,
    rows: TokenRows,
    sums: KeySums,
    plan: CollectionPlan,
    checkpoint: Checkpoint | None,
    progress: bool,
    processes: Processes,
) -> None:
    """Batch after batch until there are enough tokens, or no more; each batch in one of the processes."""
    stream = iter(rows)
    started, before, turn = time.monotonic(), sums.count, 0
    # disable=None: no bar where nobody watches, as in a log file
    hidden = None if progress else True
    with tqdm(total=plan.n_tokens, initial=before, desc="keys", unit="token", disable=hidden, leave=False) as bar:
        while sums.count < plan.n_tokens:
            batch: list[list[int]] = []
            missing = plan.n_tokens - sums.count
            while len(batch) < plan.batch_size and missing > 0 and (row := next(stream, None)) is not None:
                batch.append(row[:missing])
                missing -= len(batch[-1])
            if not batch:
                break
            if turn % processes.count == processes.index:
                sums.add(capture.keys(batch), rows.position)
            else:
                sums.pass_over(sum(map(len, batch)), rows.position)
            turn += 1
            bar.update(sums.count - bar.n)
            if checkpoint is not None:
                checkpoint.keep(sums)
    seconds = time.monotonic() - started
    logger.info("%d tokens in %.1f s", sums.count - before, seconds)


def _finish(
    sums: KeySums,
    maps: dict[int, LinearMap],
    fingerprint: Fingerprint,
    about: dict[str, Any],
    folder: Path | None,
    checkpoint: Checkpoint | None,
) -> KeyStatistics:
    """Means of the sums; with a folder, written to it layer by layer, and the work in progress is removed."""
    writer = None if folder is None else StatisticsWriter(folder, fingerprint, about)
    by_layer: dict[int, LayerStatistics] = {}
    for layer, linear in maps.items():
        statistics = MomentStatistics(
            sums.moment(layer), sums.count, sums.sample(layer), f"layer {layer}", sums.taken(layer)
        )
        width = linear.d_in // linear.experts
        logger.info("layer %d (%s): eigenvectors of %d matrices %d wide", layer, linear.name, linear.experts, width)
        if writer is None:
            by_layer[layer] = statistics
        else:
            writer.add(layer, statistics)
    if writer is None or folder is None or checkpoint is None:
        return KeyStatistics(by_layer, fingerprint, about, "the statistics")
    writer.finish()
    checkpoint.remove()
    return KeyStatistics.load(folder)
