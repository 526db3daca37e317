"""CoRSA: conflict-resolving and sharpness-aware minimisation over LoRA parameters (papers/corsa.md, Algorithm 1).

The rooms, in the order a step walks through them:

* :mod:`~corsa_plugins.corsa.settings`: the weights of the parts, each of which can be off;
* :mod:`~corsa_plugins.corsa.objective`: the SFT and DPO losses as functions of per-token log-probabilities, and how
  much each token's log-probability weighs in each loss;
* :mod:`~corsa_plugins.corsa.stopping`: which facts are learned and push no more, where that is asked for;
* :mod:`~corsa_plugins.corsa.gradients`: both task gradients from one forward pass;
* :mod:`~corsa_plugins.corsa.pcgrad`: the merged direction, a weighted sum whose weights depend on three inner products;
* :mod:`~corsa_plugins.corsa.sam`: the perturbation, and getting back from it bit for bit;
* :mod:`~corsa_plugins.corsa.step`: Algorithm 1, lines 3-15;
* :mod:`~corsa_plugins.corsa.kept` and :mod:`~corsa_plugins.corsa.keeping`, beside it: prompts whose answers are to
  stay, and what holds them;
* :mod:`~corsa_plugins.corsa.rates`: a learning rate found by trying.
"""

from corsa_plugins.corsa.gradients import (
    Linearization,
    OneBackward,
    SummedBackward,
    TaskGradients,
    TwoBackwards,
    TwoPasses,
)
from corsa_plugins.corsa.objective import (
    NonFiniteGradientError,
    TokenWeights,
    dpo_loss,
    margin,
    sft_loss,
    token_weights,
)
from corsa_plugins.corsa.pcgrad import Gram, MergeWeights, pcgrad_weights
from corsa_plugins.corsa.sam import perturbed
from corsa_plugins.corsa.settings import CorsaSettings
from corsa_plugins.corsa.step import CorsaStep, corsa_step
from corsa_plugins.corsa.stopping import LearnedLevel

__all__ = [
    "CorsaSettings",
    "CorsaStep",
    "Gram",
    "LearnedLevel",
    "Linearization",
    "MergeWeights",
    "NonFiniteGradientError",
    "OneBackward",
    "SummedBackward",
    "TaskGradients",
    "TokenWeights",
    "TwoBackwards",
    "TwoPasses",
    "corsa_step",
    "dpo_loss",
    "margin",
    "pcgrad_weights",
    "perturbed",
    "sft_loss",
    "token_weights",
]
