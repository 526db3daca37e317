"""What a preference data set must hold before CoRSA can train on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from corsa_plugins.errors import SettingError

__all__ = ["check_lengths", "checked_preferences", "row_lengths", "warn_of_dropped_rows", "with_lengths"]

logger = logging.getLogger(__name__)

_SHOWN = 5


def checked_preferences(dataset: Any, name: str) -> Any:
    """The data set, once every row is known to have a new and an outdated answer.

    A map-style data set is read through once; a streamed one is checked row by row as it comes.

    Raises:
        ValueError: naming the rows that lack `chosen` or `rejected`, or in which either is empty.
    """
    if isinstance(dataset, Dataset):
        if "prompt_ids" in dataset.column_names:  # already prepared
            return dataset
        _require_columns(dataset.column_names, name)
        problems: list[str] = []
        same: list[int] = []
        index = 0
        for batch in dataset.select_columns(["chosen", "rejected"]).iter(batch_size=1000):
            for chosen, rejected in zip(batch["chosen"], batch["rejected"], strict=True):
                problem = _problem(chosen, rejected)
                if problem:
                    problems.append(f"row {index}: {problem}")
                elif chosen == rejected:
                    same.append(index)
                index += 1
        if problems:
            shown = "; ".join(problems[:_SHOWN]) + (
                f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            )
            raise SettingError(f"The {name} data set cannot be trained on. {shown}. {_ADVICE}")
        if same:
            logger.warning(
                "%d rows of the %s data set have the same new and outdated answer (first: row %d): the DPO loss has "
                "nothing to separate in them.",
                len(same),
                name,
                same[0],
            )
        return dataset
    if isinstance(dataset, IterableDataset):
        if dataset.column_names is not None and "prompt_ids" not in dataset.column_names:
            _require_columns(dataset.column_names, name)

        def check(row: Mapping[str, Any], index: int) -> Mapping[str, Any]:
            problem = None if "prompt_ids" in row else _problem(row.get("chosen"), row.get("rejected"))
            if problem:
                raise SettingError(f"The {name} data set cannot be trained on. row {index}: {problem}. {_ADVICE}")
            return row

        return dataset.map(check, with_indices=True)
    return dataset  # DPOTrainer says what it takes


def warn_of_dropped_rows(before: int, after: int, max_length: int | None, name: str) -> None:
    """Say how many rows `DPOTrainer` left out because their prompt alone fills ``max_length`` tokens.

    Raises:
        ValueError: no row is left.
    """
    if after == 0 and before > 0:
        raise SettingError(
            f"Every prompt of the {name} data set fills `max_length={max_length}` tokens by itself, which leaves "
            "nothing to train on. Raise `max_length`."
        )
    if after < before:
        logger.warning(
            "%d of %d rows of the %s data set are left out: their prompt fills `max_length=%s` tokens by itself.",
            before - after,
            before,
            name,
            max_length,
        )


def row_lengths(dataset: Dataset) -> list[int]:
    """Tokens of each row of a prepared data set: its prompt and both of its answers."""
    lengths: list[int] = []
    for batch in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).iter(batch_size=1000):
        lengths += [sum(map(len, row)) for row in zip(*batch.values(), strict=True)]
    return lengths


def with_lengths(dataset: Any, args: TrainingArguments) -> Any:
    """The data set with the column that a sampler reads which groups rows by length; TRL's rows have no other one."""
    column = args.length_column_name
    by_length = args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    if by_length and isinstance(dataset, Dataset) and column not in dataset.column_names:
        return dataset.add_column(column, row_lengths(dataset))
    return dataset


def check_lengths(dataset: Any, longest: int | None, max_length: int | None, name: str) -> None:
    """Refuse rows that are longer than the model reads: a model with a table of positions has none for the rest.

    Args:
        dataset: Tokenised.
        longest: How many tokens the model reads, if it says so.
        max_length: What rows are cut to.
        name: Of the data set.

    Raises:
        SettingError: naming the first such row and its length.
    """
    if longest is None or not isinstance(dataset, Dataset) or (max_length is not None and max_length <= longest):
        return
    for index, row in enumerate(dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])):
        length = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if length > longest:
            raise SettingError(
                f"Row {index} of the {name} data set is {length} tokens long, and the model reads {longest}. Shorten "
                f"or leave out its prompt, or set `max_length={longest}`, which cuts it."
            )


_ADVICE = (
    "Every row needs the new answer in `chosen` and the outdated one in `rejected`. Where no outdated answer is known, "
    "`corsa_plugins.data.preferences.fill_target_old` (or `corsa train --fill_target_old`) asks the model for its own."
)


def _require_columns(columns: list[str] | None, name: str) -> None:
    missing = [column for column in ("chosen", "rejected") if column not in (columns or [])]
    if missing:
        names = ", ".join(columns or []) or "none"
        raise SettingError(f"The {name} data set has no column `{'`, `'.join(missing)}` (columns: {names}). {_ADVICE}")


def _problem(chosen: Any, rejected: Any) -> str | None:
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            return f"`{column}` is missing"
        if not _text(value).strip():
            return f"`{column}` is empty"
    return None


def _text(completion: Any) -> str:
    """The text that counts: a string itself, or what the last message of a conversation says."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    content = completion[-1].get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # typed parts, as multimodal templates have them
        return " ".join(str(part.get("text") or "") for part in content)
    # A message may carry tool calls instead of text.
    return "tool call" if completion[-1].get("tool_calls") else ""
