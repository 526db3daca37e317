"""Attention over short rows on a processor in half precision, by plain products where torch's fused way back is slower.

Torch's fused attention is made for long rows. On the way back in bfloat16 it works on blocks of a fixed size, and of
rows of a few dozen tokens, which facts are, takes three times what the scores written out take: a fifth of a training
step of a small model. The two differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from corsa_plugins.model.batching import input_device
from corsa_plugins.model.tokenization import JoinedIds

__all__ = ["LONGEST", "longest_row", "short_attention"]

LONGEST = 128
"""Tokens of a row, those that it reads on from included, up to which the scores are written out."""

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def short_attention(model: Any, length: int) -> Iterator[None]:
    """Within the block, attention that a gradient will go back through is computed by plain products, if rows are short
    and the model runs in half precision on a CPU; otherwise, and without gradients, as ever.

    What runs activations again on the way back has to stand within the block as well.

    Args:
        model: To be run; one whose attention is not torch's own is left as it is.
        length: Tokens of the longest row.
    """
    if length > LONGEST or not torch.is_grad_enabled() or not _half_on_cpu(model):
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def longest_row(rows: Sequence[JoinedIds]) -> int:
    """Tokens of the longest prompt with its answer."""
    return max(len(row.prompt_ids) + len(row.target_ids) for row in rows)


def _half_on_cpu(model: Any) -> bool:
    if input_device(model).type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") in _HALF
    return next(model.parameters()).dtype in _HALF
