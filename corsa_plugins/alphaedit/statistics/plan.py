"""What a collection is to be of, and whether it came to enough."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, LinearMap
from corsa_plugins.model.limits import longest_text
from corsa_plugins.settings import Count, NonNegativeInt, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CollectionPlan", "check_count", "down_maps", "usual_length"]

logger = logging.getLogger(__name__)

_LENGTH = 512
_ENOUGH = 10  # tokens per feature


@dataclass(frozen=True)
class CollectionPlan(Settings):
    """The settings of a collection that decide its result.

    Attributes:
        n_tokens: How many to take.
        length: Tokens in a row.
        batch_size: Rows per forward pass.
        pack: Whether rows are filled with documents one after the other.
        sample_size: Keys to keep of each layer.
        seed: Of the sample.
    """

    n_tokens: Count
    length: Count
    batch_size: Count
    pack: bool
    sample_size: NonNegativeInt
    seed: int

    def check_model(self, model: PreTrainedModel) -> None:
        """See that the model reads rows of that length.

        Raises:
            SettingError: It does not.
        """
        longest = longest_text(model)
        if longest is not None and self.length > longest:
            raise SettingError(f"length is {self.length}: the model reads {longest} tokens")


def usual_length(model: PreTrainedModel) -> int:
    """512 tokens in a row, or what the model reads if that is less."""
    return min(_LENGTH, longest_text(model) or _LENGTH)


def down_maps(architecture: Architecture, layers: Sequence[int], n_tokens: int) -> dict[int, LinearMap]:
    """The down maps of ``layers`` in ascending order.

    Raises:
        SettingError: There are no layers, no such layers, or fewer tokens than keys are wide.
    """
    if not layers:
        raise SettingError("layers is empty: name at least one block to collect statistics of")
    maps = {layer: architecture.ffn(layer).down for layer in sorted(set(layers))}
    for layer, linear in maps.items():
        if n_tokens < linear.d_in:
            raise SettingError(
                f"n_tokens is {n_tokens}: the keys of layer {layer} are {linear.d_in} wide, and fewer tokens leave "
                f"directions unseen, which would look like null space; take {_ENOUGH * linear.d_in} or more"
            )
    return maps


def check_count(count: int, plan: CollectionPlan, maps: Mapping[int, LinearMap]) -> None:
    """Say that the text was short; refuse what looks like null space because of it.

    Raises:
        StatisticsError: There were fewer tokens than keys are wide.
    """
    if count < plan.n_tokens:
        logger.warning("the text gave %d tokens of the %d that were asked for", count, plan.n_tokens)
    layer, linear = max(maps.items(), key=lambda item: item[1].d_in)
    if count < linear.d_in:
        raise StatisticsError(
            f"the text gave {count} tokens, and the keys of layer {layer} are {linear.d_in} wide: fewer tokens leave "
            f"directions unseen, which would look like null space; give text of {_ENOUGH * linear.d_in} or more"
        )
    if count < _ENOUGH * linear.d_in:
        logger.warning(
            "%d tokens are few for the keys of layer %d, which are %d wide: directions that the text did not reach "
            "look like null space; take %d or more", count, layer, linear.d_in, _ENOUGH * linear.d_in,
        )  # fmt: skip
