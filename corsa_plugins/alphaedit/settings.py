"""The settings of AlphaEdit+, AlphaEdit, and the other methods of this editor; the papers' values are in presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.values.anchor import NormAnchorSettings
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.settings import BlockNumber, Count, NonNegative, NonNegativeInt, Settings, Share

__all__ = ["AlphaEditSettings", "Penalty", "Residuals", "RidgeUnit", "ValidationScore", "preset_names"]

RidgeUnit = Literal["absolute", "relative"]
Penalty = Literal["weights", "outputs"]
Residuals = Literal["spread", "own"]
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

    What other methods have in their place are settings too (:mod:`corsa_plugins.methods.family`), so that the three
    parts can be had on top of each.

    Attributes:
        layers: The blocks whose FFN down map is edited, counted from 0, in ascending order.
        residuals: ``"spread"``: v* is that of the last layer, and what is missing is spread over the layers as in
            MEMIT: layer i of L, counted from 0, takes 1 / (L - i) of what is left. ``"own"``: each layer has a v* of
            its own, found with the layers before it edited, and takes all that is missing to it, as in BLUE.
        null_space: Which eigenvectors of the preserved keys' second moment count as their null space. The papers use an
            absolute threshold, which does not carry over from one model to another; a share does. ``None``: edits may
            write anywhere, P = I, as in MEMIT and ROME.
        values: How v* is found.
        norm_anchor: The norm that v* is brought to, as in NAS (:mod:`~corsa_plugins.alphaedit.values.anchor`);
            ``None``: v* stays as it is found.
        penalty: What lambda weighs. ``"weights"``: ||Delta||^2, as in Eq. 1. ``"outputs"``: E||Delta k0||^2, what the
            edit changes of the outputs at the preserved keys, as in MEMIT
            (:mod:`~corsa_plugins.alphaedit.solver.weighed`).
        norm_weight: Of ||Delta||^2 beside E||Delta k0||^2, where the penalty is on outputs: lambda_n / lambda_p of
            ENCORE; 0 in MEMIT.
        ridge: lambda of Eq. 1 and 7. 0, where the penalty is on outputs: every target exactly, as in ROME
            (:mod:`~corsa_plugins.alphaedit.solver.exact`).
        ridge_unit: ``"absolute"``: lambda itself, 10 in the paper. ``"relative"``: in units of the mean squared norm of
            the projected new keys, which is what lambda is weighed against (Lemma 1): 0.1 leaves about a tenth
            of a lone edit's residual, on any model.
        one_at_a_time: Make the edits of a batch one after the other, each with values and keys of the model as the
            others have left it, as in ROME. The batch is one all the same: it is kept and taken back as a whole.
        prior_weight: beta, the weight of earlier edits (appendix A.5): 100 in the paper's experiments, 1 in AlphaEdit,
            and 0 where earlier edits are not spared, as in MEMIT.
        prior_outputs: ``"weighed"``: that weight is what their outputs are worth. ``"kept"``: updates are orthogonal to
            the keys of all earlier edits, whose outputs stay as they are, as in KDE.
        prior_weight_by_layer: Multiply beta by the position of the layer among ``layers``, counted from 1, as the
            published code does.
        conflict_weights: Weight each earlier edit by 1 - its conflict with the new ones (Lambda_p of Eq. 7).
        search: The search for eigenvectors to add to the null space (Algorithm 1, lines 4-10); ``None``: none is made.
        smoothing: Smoothed targets for requests of high inconsistency (lines 11-20); ``None``: none are.
        restraint: What is put into the weights in place of the sum of the updates
            (:mod:`~corsa_plugins.alphaedit.restraint`); ``None``: the sum.
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
    residuals: Residuals = "spread"
    null_space: NullSpaceRule | None = field(default_factory=NullSpaceRule)
    values: ValueSettings = field(default_factory=ValueSettings)
    norm_anchor: NormAnchorSettings | None = None
    penalty: Penalty = "weights"
    norm_weight: NonNegative = 0.0
    ridge: NonNegative = 10.0
    ridge_unit: RidgeUnit = "absolute"
    one_at_a_time: bool = False
    prior_weight: NonNegative = 100.0
    prior_outputs: Literal["weighed", "kept"] = "weighed"
    prior_weight_by_layer: bool = False
    conflict_weights: bool = True
    search: SearchSettings | None = field(default_factory=SearchSettings)
    smoothing: SmoothingSettings | None = field(default_factory=SmoothingSettings)
    restraint: RestraintSettings | None = None
    subject_keys: bool = False
    neighbours: NeighbourSettings | None = None
    validation_score: ValidationScore = "probability"
    n_contexts: NonNegativeInt = 5
    context_length: Count = 10
    reach: Share = 0.5
    batch_size: Count = 64
    dtype: Literal["float32", "float64"] | None = None

    def check(self) -> None:
        if self.norm_weight and self.penalty != "outputs":
            raise self.refused("norm_weight", "with penalty='weights' the norm is all there is: leave it out")
        if self.null_space is None and self.search is not None:
            raise self.refused("null_space", "edits may write anywhere, and search has nothing to add: leave it out")
        spared = [name for name in ("prior_weight", "search", "neighbours") if getattr(self, name)]
        if self.ridge == 0 and self.penalty != "outputs":
            raise self.refused("ridge", "it must be a number over 0; 0, every target exactly, is for penalty='outputs'")
        if self.ridge == 0 and spared:
            raise self.refused("ridge", f"0 leaves no room for {' and '.join(spared)}: set to 0 or None, or a ridge")
        if self.prior_outputs == "kept" and spared:
            raise self.refused("prior_outputs", f"not for {' and '.join(spared)}: set to 0 or None")
        if self.one_at_a_time and spared:
            raise self.refused("one_at_a_time", f"not for {' and '.join(spared)}: set to 0 or None, or edit in batches")

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
