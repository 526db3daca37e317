"""R-SFT: sample-wise robust supervised fine-tuning of one FFN (papers/model-merging-for-knowledge-editing.md).

The rooms, in the order a run walks through them:

* :mod:`~corsa_plugins.rsft.settings`: epochs, steps, threshold, and what trains;
* :mod:`~corsa_plugins.rsft.samples`: an edit request as token ids;
* :mod:`~corsa_plugins.rsft.selection`: the parameters that train, and the blocks below them, which never change;
* :mod:`~corsa_plugins.rsft.loss`: L_n of Eq. 1, the frozen blocks run once per sample, the head on answers only;
* :mod:`~corsa_plugins.rsft.weights`: the weights in training precision, and getting back to earlier ones bit for bit;
* :mod:`~corsa_plugins.rsft.updates`: Eq. 2, plain or with AdamW;
* :mod:`~corsa_plugins.rsft.train`: Algorithm 1;
* :mod:`~corsa_plugins.rsft.report`: what happened to each sample.
"""

from corsa_plugins.rsft.report import RSFTReport, SampleReport
from corsa_plugins.rsft.selection import trainable_parameters
from corsa_plugins.rsft.settings import RSFTSettings
from corsa_plugins.rsft.train import rsft
from corsa_plugins.rsft.updates import NonFiniteLossError

__all__ = ["NonFiniteLossError", "RSFTReport", "RSFTSettings", "SampleReport", "rsft", "trainable_parameters"]
