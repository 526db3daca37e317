"""CoRSA's own settings, with the paper's values as defaults (papers/corsa.md, Eq. 4 and 7, A.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from corsa_plugins.corsa.pcgrad import Gram, MergeWeights, PCGradForm, pcgrad_weights
from corsa_plugins.corsa.stopping import LearnedLevel
from corsa_plugins.settings import Count, NonNegative, Positive, Settings, Share

__all__ = ["CorsaSettings"]


@dataclass(frozen=True)
class CorsaSettings(Settings):
    """What to do in a step. Each part can be switched off alone.

    Attributes:
        dpo_weight: lambda >= 0 of Eq. 4. 0 leaves the SFT loss alone.
        beta: inverse temperature of the DPO loss, for whoever hands the losses to the step.
        sam_rho: radius of the perturbation, in the Euclidean norm over all LoRA parameters. 0 switches SAM off.
        sam_eps: the algorithm's epsilon, in every denominator.
        pcgrad: project conflicting gradients; else the plain weighted sum.
        pcgrad_form: see :func:`~corsa_plugins.corsa.pcgrad.pcgrad_weights`.
        learned_at: probability of its new answer at which a fact counts as learned and stops pushing, for whoever hands
            the losses to the step. 0, which is the paper's, lets every fact push to the end.
        learned_margin: what log p(y+) - log p(y-) must be as well, in nats.
        sam_start: share of a training, in [0, 1], before which its steps are without SAM. Algorithm 1 has 0.
        sam_interval: from there on one step of so many is with SAM, the first one first. Algorithm 1 has 1.
        keep_weight: weight of the divergence of kept prompts from what the model said to them before
            (:mod:`corsa_plugins.corsa.keeping`). 0, which is the paper's, holds nothing.
        keep_tolerance: divergence past which that weight grows, in nats per token.
    """

    dpo_weight: NonNegative = 1.0
    beta: Positive = 0.1
    sam_rho: NonNegative = 0.05
    sam_eps: Positive = 1e-12
    pcgrad: bool = True
    pcgrad_form: PCGradForm = "sequential"
    learned_at: Share = 0.0
    learned_margin: NonNegative = 0.0
    sam_start: Share = 0.0
    sam_interval: Count = 1
    keep_weight: NonNegative = 0.0
    keep_tolerance: Positive = 0.05

    @property
    def level(self) -> LearnedLevel | None:
        """When a fact counts as learned; ``None`` where none ever does."""
        return LearnedLevel(self.learned_at, self.learned_margin) if self.learned_at > 0 else None

    def at(self, step: int, total: int) -> CorsaSettings:
        """The settings of one step of a training: these, or these without SAM.

        Args:
            step: how many steps have been taken before.
            total: how many are taken in all.
        """
        first = ceil(self.sam_start * total)
        with_sam = step >= first and (step - first) % self.sam_interval == 0
        return self if with_sam or self.sam_rho == 0 else replace(self, sam_rho=0.0)

    def looks(self, total: int) -> float:
        """Evaluations of both gradients per step, mean over a training of ``total`` steps: 1 without SAM, 2 with it."""
        return 1 + sum(self.at(step, total).sam_rho > 0 for step in range(total)) / total

    def merge(self, gram: Gram) -> MergeWeights:
        """Weights of the direction these settings ask for."""
        if self.pcgrad:
            return pcgrad_weights(gram, self.dpo_weight, self.pcgrad_form, self.sam_eps)
        return MergeWeights(1.0, self.dpo_weight)
