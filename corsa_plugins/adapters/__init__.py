"""Edits as LoRA adapters, out of an edit state and back into one.

An edit state holds each update of a weight as a product, left right^T: that is a LoRA of as many ranks as there are
edits in force. So nothing is fitted, and nothing is lost.

* :mod:`~corsa_plugins.adapters.low_rank`: a change of a weight as a product;
* :mod:`~corsa_plugins.adapters.compression`: the best product of a smaller rank, in the norm of the keys;
* :mod:`~corsa_plugins.adapters.routed`: a change of routed experts as a product for each;
* :mod:`~corsa_plugins.adapters.sites`: what a state changes, by name;
* :mod:`~corsa_plugins.adapters.servers`: which ranks a server takes;
* :mod:`~corsa_plugins.adapters.folder`: the folder that PEFT, vLLM and llama.cpp's converter read;
* :mod:`~corsa_plugins.adapters.efficacy`: what a model answers with a change in its weights;
* :mod:`~corsa_plugins.adapters.export`: a state's edits as an adapter;
* :mod:`~corsa_plugins.adapters.beside`: the folder of an edit of a quantised base;
* :mod:`~corsa_plugins.adapters.difference`: what tells two models apart as an adapter;
* :mod:`~corsa_plugins.adapters.adoption`: an adapter as a batch of a state;
* :mod:`~corsa_plugins.adapters.localized`: where an adapter reads that is to be trained.
"""

from corsa_plugins.adapters.adoption import adopt_adapter, adopting_editor
from corsa_plugins.adapters.beside import save_edits
from corsa_plugins.adapters.difference import export_difference
from corsa_plugins.adapters.efficacy import Asked
from corsa_plugins.adapters.export import AdapterForm, Exported, export_state
from corsa_plugins.adapters.folder import AdapterError, LoraAdapter, read_adapter, write_adapter
from corsa_plugins.adapters.localized import early_layers, read_directions
from corsa_plugins.adapters.low_rank import LowRank
from corsa_plugins.adapters.servers import vllm_rank

__all__ = [
    "AdapterError",
    "AdapterForm",
    "Asked",
    "Exported",
    "LoraAdapter",
    "LowRank",
    "adopt_adapter",
    "adopting_editor",
    "early_layers",
    "export_difference",
    "export_state",
    "read_adapter",
    "read_directions",
    "save_edits",
    "vllm_rank",
    "write_adapter",
]
