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
    maps = {layer: architecture.edited(layer) for layer in sorted(set(layers))}
    for layer, linear in maps.items():
        width = linear.d_in // linear.experts  # a token may take every expert
        if n_tokens < width:
            raise SettingError(
                f"n_tokens is {n_tokens}: the keys of layer {layer} are {width} wide, and fewer tokens leave "
                f"directions unseen, which would look like null space; take {_ENOUGH * linear.d_in} or more"
            )
    return maps


def check_count(
    count: int,
    plan: CollectionPlan,
    maps: Mapping[int, LinearMap],
    taken: Mapping[int, tuple[int, ...]] | None = None,
) -> None:
    """Say that the text was short; refuse what looks like null space because of it.

    Args:
        count: How many tokens there were.
        plan: What was asked for.
        maps: Whose keys.
        taken: How many of the tokens took each routed expert, by layer.

    Raises:
        StatisticsError: There were fewer tokens than keys are wide; of routed experts, for none of a layer as many.
    """
    if count < plan.n_tokens:
        logger.warning("the text gave %d tokens of the %d that were asked for", count, plan.n_tokens)
    for layer, counts in (taken or {}).items():
        if counts:
            _check_experts(layer, maps[layer].d_in // maps[layer].experts, counts)
    plain = {layer: linear for layer, linear in maps.items() if linear.experts == 1}
    if not plain:
        return
    layer, linear = max(plain.items(), key=lambda item: item[1].d_in)
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


def _check_experts(layer: int, width: int, taken: tuple[int, ...]) -> None:
    if max(taken) < width:
        raise StatisticsError(
            f"at layer {layer} no expert was taken by more than {max(taken)} tokens of the text, and keys are {width} "
            "wide: fewer leave directions unseen, which would look like null space; give "
            f"{width * _ENOUGH * len(taken)} tokens or more"
        )
    few = [f"{expert} ({count})" for expert, count in enumerate(taken) if count < _ENOUGH * width]
    if few:
        logger.warning(
            "few tokens took these experts of layer %d, whose keys are %d wide: %s. Directions that the text did not "
            "reach look like null space; take more text, %d tokens for each",
            layer, width, ", ".join(few), _ENOUGH * width,
        )  # fmt: skip
