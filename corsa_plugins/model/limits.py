"""What a model can read: how many tokens at once, and which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Size, Tensor
    from transformers import PreTrainedModel

__all__ = ["full_shape", "longest_text", "vocabulary_size"]


def longest_text(model: PreTrainedModel) -> int | None:
    """How many tokens the model reads at most, if it says so."""
    config: Any = model.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len")  # MPT has the other
    return next((limit for name in names if (limit := getattr(config, name, None)) is not None), None)


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens the model embeds, those that its tokenizer never writes included."""
    embedding: Any = model.get_input_embeddings()
    return int(full_shape(embedding.weight)[0])


def full_shape(parameter: Tensor) -> Size:
    """The shape of a parameter; of one that DeepSpeed has put in parts, which shows nothing by itself, of the whole."""
    shape: Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
