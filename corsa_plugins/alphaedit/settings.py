"""The settings of AlphaEdit+ and AlphaEdit: defaults for any model; the papers' values are in presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.settings import BlockNumber, Count, NonNegative, NonNegativeInt, Positive, Settings, Share

__all__ = ["AlphaEditSettings", "RidgeUnit", "ValidationScore", "preset_names"]

RidgeUnit = Literal["absolute", "relative"]
ValidationScore = Literal["accuracy", "probability"]


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if list(layers) != sorted(set(layers)):
        raise ValueError
    return layers


_Layers = Annotated[
    tuple[BlockNumber, ...],
    Field(
        min_length=1,
        description="the numbers of the blocks to edit, counted from 0, each once and in ascending order, such as "
        "[4, 5, 6, 7, 8]",
    ),
    AfterValidator(_ascending),
]


@dataclass(frozen=True)
class AlphaEditSettings(Settings):
    """What is edited and how. AlphaEdit is this editor with the three parts of AlphaEdit+ off: :meth:`alphaedit`.

    Attributes:
        layers: The blocks whose FFN down map is edited, counted from 0, in ascending order. The residual is spread over
            them as in MEMIT: layer i of L, counted from 0, takes 1 / (L - i) of what is left.
        null_space: Which eigenvectors of the preserved keys' second moment count as their null space. The papers use an
            absolute threshold, which does not carry over from one model to another; a share does.
        values: How v* is found.
        ridge: lambda of Eq. 1 and 7.
        ridge_unit: ``"absolute"``: lambda itself, 10 in the paper. ``"relative"``: in units of the mean squared norm of
            the projected new keys, which is what lambda is weighed against (Lemma 1): 0.1 leaves about a tenth
            of a lone edit's residual, on any model.
        prior_weight: beta, the weight of earlier edits (appendix A.5): 100 in the paper's experiments, 1 in AlphaEdit.
        prior_weight_by_layer: Multiply beta by the position of the layer among ``layers``, counted from 1, as the
            published code does.
        conflict_weights: Weight each earlier edit by 1 - its conflict with the new ones (Lambda_p of Eq. 7).
        search: The search for eigenvectors to add to the null space (Algorithm 1, lines 4-10); ``None``: none is made.
        smoothing: Smoothed targets for requests of high inconsistency (lines 11-20); ``None``: none are.
        subject_keys: Give the value also to the key of the subject with nothing before it, in every context, which
            is what rewordings that begin with it are looked up by. Not in the paper.
        neighbours: Keys of the same prompts about other subjects, which keep their outputs; ``None``: none, as in the
            paper.
        validation_score: What decides between smoothed targets, over the validation prompts: ``"probability"``, the
            mean probability of the target, the geometric mean over its tokens, which also moves when no answer flips;
            ``"accuracy"``, the share whose every target token is the most likely one.
        n_contexts: Number of generated contexts that keys and values are averaged over, beside the bare prompt.
        context_length: Length of each, in tokens.
        reach: A request counts as out of reach if with its v* in place the target's probability is below this.
        batch_size: Prompts per forward pass where no gradients are taken.
        dtype: Of stored keys and factors: ``"float32"`` or ``"float64"``; what is inverted is float64 either way.
            ``None``: float64 for float64 weights, float32 for all others.
    """

    layers: _Layers
    null_space: NullSpaceRule = field(default_factory=NullSpaceRule)
    values: ValueSettings = field(default_factory=ValueSettings)
    ridge: Positive = 10.0
    ridge_unit: RidgeUnit = "absolute"
    prior_weight: NonNegative = 100.0
    prior_weight_by_layer: bool = False
    conflict_weights: bool = True
    search: SearchSettings | None = field(default_factory=SearchSettings)
    smoothing: SmoothingSettings | None = field(default_factory=SmoothingSettings)
    subject_keys: bool = False
    neighbours: NeighbourSettings | None = None
    validation_score: ValidationScore = "probability"
    n_contexts: NonNegativeInt = 5
    context_length: Count = 10
    reach: Share = 0.5
    batch_size: Count = 64
    dtype: Literal["float32", "float64"] | None = None

    def alphaedit(self) -> AlphaEditSettings:
        """The same with the three parts off, beta 1 and no further keys: AlphaEdit, with these values."""
        return replace(
            self,
            conflict_weights=False,
            search=None,
            smoothing=None,
            prior_weight=1.0,
            subject_keys=False,
            neighbours=None,
        )


def preset_names() -> list[str]:
    """Names of the settings that ship with the package, for :meth:`AlphaEditSettings.load`."""
    return list(AlphaEditSettings.presets())
