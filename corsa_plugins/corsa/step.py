"""One CoRSA step: Algorithm 1 of papers/corsa.md, lines 3 to 15."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

from torch import Tensor

from corsa_plugins.corsa.gradients import TaskGradients
from corsa_plugins.corsa.objective import NonFiniteGradientError
from corsa_plugins.corsa.pcgrad import Gram
from corsa_plugins.corsa.sam import perturbed
from corsa_plugins.corsa.settings import CorsaSettings

__all__ = ["CorsaStep", "corsa_step"]


@dataclass(frozen=True)
class CorsaStep:
    """What came of a step.

    Attributes:
        update: one tensor per parameter, the direction to hand to the optimiser at phi.
        cosine: cosine between the two gradients, at phi and at the point the update was taken at; 0 where there are no
            two, or they were never apart.
        conflicts: whether they opposed each other there (one entry without SAM, two with it).
        perturbation_norm: ||eps||, 0 without SAM.
    """

    update: list[Tensor]
    cosine: tuple[float, ...]
    conflicts: tuple[bool, ...]
    perturbation_norm: float


def corsa_step(
    gradients: Callable[[], TaskGradients], parameters: Sequence[Tensor], settings: CorsaSettings
) -> CorsaStep:
    """Two looks at the gradients, one from phi and one from the worst point nearby; the second gives the update.

    Args:
        gradients: evaluates both task gradients at the parameters' current values. Called once without SAM, twice
            with it; the calls must see the same batch.
        parameters: the LoRA parameters phi. They are moved during the call and are bit for bit back after it, also
            when it raises.

    Raises:
        NonFiniteGradientError: NaN or infinity in a gradient, saying which loss and at which of the two points.
    """
    at_phi, gram = _evaluate(gradients, "at the current parameters")
    weights = settings.merge(gram)
    if settings.sam_rho == 0:
        return CorsaStep(at_phi.merge(weights), (gram.cosine,), (gram.conflicting,), 0.0)

    direction = at_phi.merge(weights)
    # Of the direction itself: the norm that the weights and inner products give cancels where gradients oppose.
    ascent_norm = sqrt(Gram.of(direction, None).sft_sft)
    scale = settings.sam_rho / (ascent_norm + settings.sam_eps)
    del at_phi  # the merged direction is all that the second half needs: two gradients less in memory
    with perturbed(parameters, direction, scale):
        del direction
        shifted, shifted_gram = _evaluate(gradients, "at the perturbed parameters")
    return CorsaStep(
        shifted.merge(settings.merge(shifted_gram)),
        (gram.cosine, shifted_gram.cosine),
        (gram.conflicting, shifted_gram.conflicting),
        scale * ascent_norm,
    )


def _evaluate(gradients: Callable[[], TaskGradients], where: str) -> tuple[TaskGradients, Gram]:
    try:
        pair = gradients()
    except NonFiniteGradientError as error:
        raise NonFiniteGradientError(f"{error} {where}") from None
    gram = Gram.of(pair.sft, pair.dpo)
    # A NaN or infinity anywhere in a gradient makes its squared norm NaN or infinite.
    first = "summed" if pair.summed else "SFT"
    bad = [name for name, square in ((first, gram.sft_sft), ("DPO", gram.dpo_dpo)) if not isfinite(square)]
    if bad:
        raise NonFiniteGradientError(f"The {' and the '.join(bad)} gradient is not finite (NaN or infinity) {where}")
    return pair, gram
