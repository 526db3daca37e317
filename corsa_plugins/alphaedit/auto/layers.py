"""Which layers to collect statistics of, and which of them to edit together."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["likely_layers", "windows"]

_WIDEST, _MOST = 5, 3
"""Layers edited together, and how many such windows are tried."""
_REACH = 0.36
"""The share of a model's depth in which the papers' models, and others, are best edited."""


def likely_layers(n_blocks: int) -> tuple[int, ...]:
    """The blocks that facts are likely to be edited in: a good third, without the very first of a deep model.

    The published settings edit 4-8 of Llama 3's 32 blocks, 3-8 of GPT-J's 28 and 13-17 of GPT2-XL's 48.

    Args:
        n_blocks: Of the model, at least 1.
    """
    last = max(1, round(_REACH * n_blocks))
    return tuple(range(1 if n_blocks >= 8 else 0, last + 1 if n_blocks >= 8 else last))


def windows(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """Up to three runs of up to five neighbouring layers among those there are statistics of, from the lowest on.

    Of two layers either is tried alone too, as shallow models may keep what they know in one.
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    found = [tuple(run[start : start + _WIDEST]) for run in runs for start in range(max(1, len(run) - _WIDEST + 1))]
    if len(found) == 1 and len(found[0]) > 2:
        found.append(found[0][-(len(found[0]) + 1) // 2 :])
    elif len(found) == 1 and len(found[0]) == 2:
        found += [(layer,) for layer in found[0]]
    if len(found) > _MOST:
        found = [found[round(index * (len(found) - 1) / (_MOST - 1))] for index in range(_MOST)]
    return list(dict.fromkeys(found))
