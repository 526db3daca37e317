"""Gradients through weights that are in memory only while they are used: fetched or unpacked anew, and not kept.

Of a module whose weights come from disk, or are unpacked from 8 or 4 bits, autograd keeps what came until the gradient
is taken: of all of them at once, so that a model would be in memory whole after all. Here it keeps the module's inputs,
and the module is run once more when its gradient is due (Chen et al., "Training Deep Nets with Sublinear Memory Cost").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from corsa_plugins.model.borrowing import attribute
from corsa_plugins.model.placement import fetches
from corsa_plugins.model.quantised import unpacks

__all__ = ["refetched"]


@contextmanager
def refetched(model: nn.Module) -> Iterator[None]:
    """Within the block no forward pass keeps weights that were fetched or unpacked; the gradients are the same ones.

    Args:
        model: Frozen where its weights are fetched. Where none are, nothing is changed. A gradient may be taken after
            the block.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if fetches(module) or unpacks(module):
                stack.enter_context(attribute(module, "forward", functools.partial(_run, module.forward)))
        yield


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # To the end also when it is run once more: what lets the weights go comes last.
    with set_checkpoint_early_stop(False):
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
