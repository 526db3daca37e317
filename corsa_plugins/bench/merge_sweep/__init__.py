"""Weight x density of a merge on a grid, in memory: what each keeps of the edits and of everything else.

* :mod:`~corsa_plugins.bench.merge_sweep.points`: the grid, a point of it, and the best of them;
* :mod:`~corsa_plugins.bench.merge_sweep.in_memory`: a model with the merged weights for as long as a block lasts;
* :mod:`~corsa_plugins.bench.merge_sweep.run`: the sweep;
* :mod:`~corsa_plugins.bench.merge_sweep.results`: the file that it appends to and goes on from;
* :mod:`~corsa_plugins.bench.merge_sweep.table`: its points as a table.

mergekit is not needed: :func:`corsa_plugins.merging.recipe.delta_recipe` writes a point down for it.
"""

from corsa_plugins.bench.merge_sweep.in_memory import changed_tensors, merged_into
from corsa_plugins.bench.merge_sweep.points import (
    SweepError,
    SweepGrid,
    SweepPoint,
    best_point,
    default_metric,
)
from corsa_plugins.bench.merge_sweep.results import read_sweep
from corsa_plugins.bench.merge_sweep.run import sweep
from corsa_plugins.bench.merge_sweep.table import sweep_table

__all__ = [
    "SweepError",
    "SweepGrid",
    "SweepPoint",
    "best_point",
    "changed_tensors",
    "default_metric",
    "merged_into",
    "read_sweep",
    "sweep",
    "sweep_table",
]
