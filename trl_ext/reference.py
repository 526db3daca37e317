"""Log-probabilities under the reference as columns of a data set, computed once before training."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainingArguments

from corsa_plugins.errors import SettingError
from trl_ext.data import row_lengths

__all__ = ["COLUMNS", "with_reference"]

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""As TRL names them, of the chosen answers and of the rejected ones."""


def with_reference(
    dataset: Any,
    name: str,
    log_probs: Callable[[dict[str, Any]], tuple[Tensor, Tensor]],
    *,
    accelerator: Accelerator,
    args: TrainingArguments,
    batch_size: int,
    collator: Callable[..., Any],
) -> Dataset:
    """The data set with a column of log-probabilities under the reference for each of the two answers.

    In the place of TRL's, which passes them between processes through a cache file that the other processes cannot see
    when the data set is held in memory, and finds old ones again by a key that knows neither the precision nor the
    reference they were computed with.

    Args:
        dataset: Prepared by TRL.
        name: Of the data set, for messages.
        log_probs: Of a batch: (B,) sums over the chosen and over the rejected answers.
        accelerator: Its processes share the rows.
        args: Of the training; says whether progress is shown.
        batch_size: Rows a pass, in each process.
        collator: Makes a batch of rows.

    Raises:
        SettingError: The data set is streamed.
    """
    if isinstance(dataset, IterableDataset):
        raise SettingError(
            f"precompute_ref_log_probs=True needs to read the {name} data set before training, and it is streamed. "
            "Set `precompute_ref_log_probs=False`, or load it whole."
        )
    stale = [column for column in COLUMNS if column in dataset.column_names]
    dataset = dataset.remove_columns(stale)  # of another trainer, perhaps against another reference
    # Rows of similar length together: a batch is padded to its longest.
    lengths = row_lengths(dataset)
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    loader = accelerator.prepare(
        DataLoader(dataset.select(order), batch_size=batch_size, collate_fn=collator, shuffle=False)
    )
    hidden = bool(os.environ.get("TQDM_DISABLE")) or args.disable_tqdm
    values: tuple[list[float], list[float]] = ([], [])
    for batch in tqdm(loader, desc=f"Reference log-probabilities of the {name} data set", disable=hidden):
        for found, of_batch in zip(values, accelerator.gather_for_metrics(log_probs(batch)), strict=True):
            found += of_batch.tolist()
    for column, found in zip(COLUMNS, values, strict=True):
        of_row = dict(zip(order, found, strict=True))
        dataset = dataset.add_column(column, [of_row[row] for row in range(len(order))])
    return dataset
