"""A change of a linear map beside its weight: y = W x + left (right^T x), as a LoRA adapter computes it.

The factors are buffers of the module that are not saved with it, so that they move with the model, and are seen by what
tells models apart; a forward hook adds what they give. So a weight can be left as it is, quantised or not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Branch", "branch_of", "branched_modules", "put_branch"]

_LEFT, _RIGHT, _HANDLE = "beside_left", "beside_right", "_beside_handle"


class Branch(NamedTuple):
    """What is added beside a weight.

    Attributes:
        left: (d_out, r).
        right: (d_in, r). The sum is made in the precision of the factors, and rounded once to that of the output.
    """

    left: Tensor
    right: Tensor


def branch_of(module: nn.Module) -> Branch | None:
    """What lies beside the weight of this very module; ``None``: nothing."""
    left, right = (getattr(module, name, None) for name in (_LEFT, _RIGHT))
    return None if left is None or right is None else Branch(left, right)


def branched_modules(model: nn.Module) -> list[str]:
    """Names of the modules that have a change beside their weight."""
    return [name for name, module in model.named_modules() if branch_of(module) is not None]


def put_branch(module: nn.Module, branch: Branch | None) -> None:
    """Put a change beside the weight of a module, in the place of an earlier one; ``None`` takes it away."""
    handle: Any = module.__dict__.pop(_HANDLE, None)
    if handle is not None:
        handle.remove()
    for name in (_LEFT, _RIGHT):
        if name in dict(module.named_buffers(recurse=False)):
            delattr(module, name)
    if branch is None or not branch.left.shape[1]:
        return
    module.register_buffer(_LEFT, branch.left, persistent=False)
    module.register_buffer(_RIGHT, branch.right, persistent=False)
    # In front: what others hang on the module is to see what the map gives with the change.
    module.__dict__[_HANDLE] = module.register_forward_hook(_add, prepend=True)


def _add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    branch = branch_of(module)
    if branch is None:
        return output
    with torch.autocast(output.device.type, enabled=False):
        given = inputs[0].to(branch.right.device, branch.right.dtype)
        change = (given @ branch.right) @ branch.left.T
        return (output + change.to(output.device)).to(output.dtype)
