"""Sets of edit requests that are hard for a given model and edit state (AlphaEdit+ paper, 4.1 and B.1, AlphaSet1-3).

The paper's sets mix a fifth of hard requests with random ones:

* ``preserved`` (AlphaSet1): keys in high conflict with the preserved ones;
* ``prior`` (AlphaSet2): rewordings of facts that were edited before, with other answers (:func:`rewordings`);
* ``inconsistent`` (AlphaSet3): the largest residuals ||v* - Wk||, measured when the edit comes to its third layer.

No request is in two of the sets (``exclude``). With each comes a validation set (:func:`validation_probes`).

There the hard requests of the first two were written by a language model. Here they are chosen from the candidates by
the same figures, so that a set can be built from any requests file; a rewording is one of the request's own validation
prompts, and its answer is another request's of the same relation.
"""

from corsa_plugins.bench.conflict_sets.rewordings import reworded, rewordings, validation_probes
from corsa_plugins.bench.conflict_sets.sets import (
    ConflictPlan,
    ConflictSet,
    Kind,
    about_file,
    conflict_set,
    figures_file,
    first_of_each_prompt,
)

__all__ = [
    "ConflictPlan",
    "ConflictSet",
    "Kind",
    "about_file",
    "conflict_set",
    "figures_file",
    "first_of_each_prompt",
    "reworded",
    "rewordings",
    "validation_probes",
]
