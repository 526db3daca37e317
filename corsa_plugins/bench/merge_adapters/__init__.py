"""Several LoRA adapters of one base combined into one, and what each of them forgot by that. Needs PEFT alone.

* :mod:`~corsa_plugins.bench.merge_adapters.merge`: adapters on disk into an adapter on disk;
* :mod:`~corsa_plugins.bench.merge_adapters.combine`: the combination itself, checked against the weighted sum;
* :mod:`~corsa_plugins.bench.merge_adapters.forgetting`: what was measured, as files and as a table;
* :mod:`~corsa_plugins.bench.merge_adapters.over_weights`: two adapters over a range of weights.
"""

from corsa_plugins.bench.merge_adapters.combine import COMBINATIONS, combine_adapters
from corsa_plugins.bench.merge_adapters.forgetting import AdapterForgetting, forgetting_table, save_forgetting
from corsa_plugins.bench.merge_adapters.merge import (
    MergedAdapters,
    WeightedAdapter,
    merge_adapters,
    weighted_adapters,
)
from corsa_plugins.bench.merge_adapters.over_weights import (
    OVER_WEIGHTS,
    MergePoint,
    merge_over_weights,
    over_weights_table,
    save_points,
)

__all__ = [
    "COMBINATIONS",
    "OVER_WEIGHTS",
    "AdapterForgetting",
    "MergePoint",
    "MergedAdapters",
    "WeightedAdapter",
    "combine_adapters",
    "forgetting_table",
    "merge_adapters",
    "merge_over_weights",
    "over_weights_table",
    "save_forgetting",
    "save_points",
    "weighted_adapters",
]
