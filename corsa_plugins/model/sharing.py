"""Pairs of rows that begin alike, run as one row: what they share passes through the model once.

Two answers to one prompt, ``p a`` and ``p b``, become ``p a b``. No token of ``b`` attends to one of ``a``, and ``b``
goes on from the positions of ``p``: to a model whose attention takes a mask of its own and position ids, every token
is what it was in its own row. Whether a model is one is not known by its name: :class:`Sharing` looks at how it
attends and then at what it computes.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corsa_plugins.model.batching import input_device
from corsa_plugins.model.borrowing import eval_mode
from corsa_plugins.model.limits import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SharedRows", "Sharing", "share_rows"]


@dataclass(frozen=True)
class SharedRows:
    """B pairs of rows as B rows.

    Attributes:
        ids: (B, S) token ids; behind a row's own tokens any.
        positions: (B, S) the place of each token in its own row.
        visible: (B, S, S) whether the token of the second axis attends to that of the third.
        places: (2B, T - 1) where each token but the last of the original rows stands, counted through all of ``ids``; 0
            where the row has no such token. A row's last token predicts nothing and is not run.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    places: Tensor


def share_rows(ids: Tensor, mask: Tensor) -> SharedRows | None:
    """Pack 2B rows, of which row ``i`` and row ``B + i`` are a pair, by the longest beginning that each pair shares.

    Args:
        ids: (2B, T) token ids.
        mask: (2B, T) the attention mask, 1 at the tokens, 0 at the padding behind them.

    Returns:
        The packed rows, or None where that cannot be: a pair shares nothing, or rows are padded in front.
    """
    rows, width = ids.shape
    pairs = rows // 2
    steps = torch.arange(width, device=ids.device)
    lengths = mask.sum(dim=1)
    if not torch.equal(mask.bool(), steps < lengths[:, None]):
        return None
    alike = (ids[:pairs] == ids[pairs:]) & mask[:pairs].bool() & mask[pairs:].bool()
    run = lengths - 1  # the last token of a row is not run
    shared = alike.long().cumprod(dim=1).sum(dim=1).minimum(run[:pairs]).minimum(run[pairs:])
    if int(shared.min()) < 1:
        return None
    first, both = run[:pairs], run[:pairs] + run[pairs:] - shared
    slots = torch.arange(int(both.max()), device=ids.device)
    of_second = slots >= first[:, None]  # (B, S); what stands behind both is padding, and no one looks at it
    positions = torch.where(of_second, slots - (first - shared)[:, None], slots)
    positions = positions.where(slots < both[:, None], 0)
    source = torch.arange(pairs, device=ids.device)[:, None] + pairs * of_second
    of_first = (slots >= shared[:, None]) & ~of_second
    visible = (slots <= slots[:, None]) & ~(of_second[:, :, None] & of_first[:, None, :])
    moved = torch.where(steps < shared[:, None], steps, steps + (first - shared)[:, None])
    places = torch.cat([steps.expand(pairs, -1), moved]).where(steps < run[:, None], 0)
    offsets = len(slots) * torch.arange(pairs, device=ids.device).repeat(2)
    return SharedRows(ids[source, positions], positions, visible, (places + offsets[:, None])[:, :-1])


_MASKED = ("sdpa", "eager")
"""The ways of attending, by transformers' names, that take a mask of any shape."""

_SHORT = (8, 12, 9)
"""Tokens that a pair shares and of its two rests: few shared, so that a wrong position or a look aside shows most."""

_RESTS = (10, 7)
"""Tokens of the two rests behind a beginning as long as is asked about: what a window hides shows there."""


class Sharing:
    """Whether a model computes of shared rows what it computes of rows by themselves.

    It has to be seen once for every length, because some layers of some models attend through a window: rows as long as
    those in question are run in both ways and compared. Lengths are tried in powers of two, and only as they come up.

    Args:
        model: The causal language model itself, with adapter layers or without, not a ``PeftModel`` around it.

    Attributes:
        reason: Why some length was refused; None as long as none was.
    """

    def __init__(self, model: PreTrainedModel):
        self.reason: str | None = None
        self._model = model
        self._verified = 0
        self._refused: int | None = None
        self._looked = False

    def supports(self, length: int) -> bool:
        """Whether shared rows of at most ``length`` tokens, made of rows of at most that, are the same to the model."""
        if not self._looked:
            self._looked = True
            self.reason = _obstacle(self._model) or _difference(self._model, *_SHORT)
            self._refused = None if self.reason is None else 0
        if length <= self._verified:
            return True
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or length
        rounded = min(max(64, 1 << (length - 1).bit_length()), max(limit, length))
        for tried in sorted({rounded, length}, reverse=True):
            if self._refused is not None and tried >= self._refused:
                continue
            reason = self._look(tried, limit)
            if reason is None:
                self._verified = tried
                return True
            self.reason, self._refused = reason, tried
        return False

    def _look(self, length: int, limit: int) -> str | None:
        if length > limit:
            return f"{length} tokens are more than the model has positions"
        longest = max(_RESTS)
        return _difference(self._model, max(length - longest, 1), *_RESTS)

    def inputs(self, rows: SharedRows) -> dict[str, Tensor]:
        """``rows`` as the model takes them: ``input_ids``, ``attention_mask`` (B, 1, S, S), ``position_ids``."""
        return _inputs(self._model, rows)


def _inputs(model: PreTrainedModel, rows: SharedRows) -> dict[str, Tensor]:
    visible = rows.visible[:, None]
    if _attention(model) == "eager":  # it adds the mask to the scores
        dtype = model.get_input_embeddings().weight.dtype
        visible = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return {"input_ids": rows.ids, "attention_mask": visible, "position_ids": rows.positions}


def _attention(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "_attn_implementation", None))


def _obstacle(model: PreTrainedModel) -> str | None:
    """Why the model cannot even be asked."""
    if _attention(model) not in _MASKED:
        return f"attention {_attention(model)!r} takes no mask of another shape than its own"
    if getattr(model, "_is_stateful", False):
        return "the model reads its tokens one after the other into a state"
    if getattr(model, "base_model", model) is model:
        return "the model has no body beside its head"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "the model takes no position ids"
    return None


def _difference(model: PreTrainedModel, shared: int, first: int, second: int) -> str | None:
    """Run a pair in both ways; what is different, if anything is.

    Args:
        shared: Tokens that the two rows begin with.
        first, second: Further tokens of each.
    """
    device = input_device(model)
    ids, mask = _pair(model, shared, first, second)
    turned = ids.clone()
    turned[0, shared:] = ids[0, shared:].flip(0)  # another first rest, which the second one cannot know of
    told = mask[:, 1:].bool()

    def states(**inputs: Any) -> Tensor:
        hidden: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden

    def once(ids: Tensor) -> Tensor:
        rows = share_rows(ids, mask)
        assert rows is not None, "a pair that begins alike can be shared"
        return states(**_inputs(model, rows)).flatten(0, 1)[rows.places][told]

    try:
        with eval_mode(model), torch.autocast(device.type, enabled=False):
            plain = states(input_ids=ids, attention_mask=mask)[:, :-1][told]
            found, beside = once(ids), once(turned)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError) as error:
        return f"the model does not take such rows ({type(error).__name__})"
    tolerance, of_first = _tolerance(model), shared + first - 1
    if not _same(found, plain, tolerance):
        return f"the model computes something else of rows of {mask.shape[1]} tokens when they share a beginning"
    if not _same(found[of_first:], beside[of_first:], min(tolerance, 1e-3)):
        return "an answer sees the other one in spite of the mask"
    return None


def _pair(model: PreTrainedModel, shared: int, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Two rows of any tokens that begin alike, and their attention mask."""
    device, width = input_device(model), shared + max(first, second)
    vocabulary = vocabulary_size(model)
    ids = (torch.arange(2 * width, device=device) * 7919 + 13).remainder(vocabulary).view(2, width)
    ids[1, :shared] = ids[0, :shared]
    # Neither the first rest nor that read backwards begins as the second does.
    taken = {int(ids[0, shared]), int(ids[0, -1])}
    ids[1, shared] = next(token for token in range(vocabulary) if token not in taken)
    lengths = torch.tensor([shared + first, shared + second], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()


def _same(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    distance = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-12)
    return bool((distance <= tolerance).all())  # NaN is not


def _tolerance(model: PreTrainedModel) -> float:
    """How far rounding may carry a hidden state, relative to its size."""
    if any(parameter.dtype not in (torch.float32, torch.float64) for parameter in model.parameters()):
        return 1e-1
    on_tensor_cores = input_device(model).type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return 5e-3 if on_tensor_cores else 1e-4
