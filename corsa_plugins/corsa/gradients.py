"""Both task gradients from one forward pass.

The losses see the parameters only through the per-token log-probabilities, so each gradient is J^T w for the same
Jacobian J and a weight vector w known without the model (:mod:`corsa_plugins.corsa.objective`). Two ways to get them:

* :class:`TwoBackwards` pulls each w through the graph. It serves every model and every loss. :class:`TwoPasses` does so
  through a graph each, where what one backward pass needs is gone after it.
* :class:`OneBackward` pulls through the graph once. Within a sequence every completion token weighs the same in L_sft,
  and the same in L_dpo, so both w are one common vector scaled by a factor per sequence. The base is frozen: nearly all
  of a backward pass goes into the gradient of the activations, which is that of the common vector; what depends on the
  factors is only the last product, in each LoRA matrix, and that is done twice. Exact, at about half the backward cost.

Where the two are not wanted apart, :class:`SummedBackward` pulls their weighted sum through the graph once, for every
model and every loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsa_plugins.corsa.objective import TokenWeights
from corsa_plugins.corsa.pcgrad import MergeWeights
from corsa_plugins.model.borrowing import remember_random_state

__all__ = ["Linearization", "OneBackward", "SummedBackward", "TaskGradients", "TwoBackwards", "TwoPasses"]


@dataclass(frozen=True)
class TaskGradients:
    """The gradient of each loss by the parameters, one tensor per parameter; ``dpo`` is None when DPO is off.

    ``summed`` says that the two were never apart: ``sft`` then holds their weighted sum, and ``dpo`` is None.
    """

    sft: list[Tensor]
    dpo: list[Tensor] | None
    summed: bool = False

    def merge(self, weights: MergeWeights) -> list[Tensor]:
        """``weights.sft * g_sft + weights.dpo * g_dpo``, in new tensors."""
        if self.dpo is None:
            return [weights.sft * g for g in self.sft]
        return [(weights.sft * g).add_(h, alpha=weights.dpo) for g, h in zip(self.sft, self.dpo, strict=True)]


class Linearization(Protocol):
    """A way to the task gradients at the parameters' current values."""

    def __call__(self, forward: Callable[[], Tensor], weigh: Callable[[Tensor], TokenWeights]) -> TaskGradients:
        """
        Args:
            forward: runs the model once and returns per-token log-probabilities (R, T) with their graph.
            weigh: maps those to the weights of both losses; called once.
        """
        ...


class TwoBackwards:
    """One backward pass for each loss."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)

    def __call__(self, forward: Callable[[], Tensor], weigh: Callable[[Tensor], TokenWeights]) -> TaskGradients:
        log_probs = forward()
        weights = weigh(log_probs)
        sft = _pull(log_probs, self.parameters, weights.sft, retain=weights.dpo is not None)
        dpo = None if weights.dpo is None else _pull(log_probs, self.parameters, weights.dpo)
        return TaskGradients(sft, dpo)


class TwoPasses(TwoBackwards):
    """A forward and a backward pass for each loss, both of them with the same random numbers."""

    def __call__(self, forward: Callable[[], Tensor], weigh: Callable[[Tensor], TokenWeights]) -> TaskGradients:
        put_back = remember_random_state()
        log_probs = forward()
        weights = weigh(log_probs)
        sft = _pull(log_probs, self.parameters, weights.sft)
        if weights.dpo is None:
            return TaskGradients(sft, None)
        put_back()
        return TaskGradients(sft, _pull(forward(), self.parameters, weights.dpo))


class SummedBackward:
    """One backward pass for the weighted sum of the losses.

    Args:
        parameters: What the gradient is taken by.
        dpo_weight: lambda of Eq. 4.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dpo_weight: float = 1.0):
        self.parameters = list(parameters)
        self.dpo_weight = dpo_weight

    def __call__(self, forward: Callable[[], Tensor], weigh: Callable[[Tensor], TokenWeights]) -> TaskGradients:
        log_probs = forward()
        weights = weigh(log_probs)
        total = weights.sft if weights.dpo is None else weights.sft + self.dpo_weight * weights.dpo
        return TaskGradients(_pull(log_probs, self.parameters, total), None, summed=weights.dpo is not None)


class OneBackward:
    """One backward pass for both losses, over the linear maps of LoRA adapters.

    Args:
        module: the model; its trainable parameters must all be weights of bias-free ``nn.Linear`` modules, as LoRA's A
            and B matrices are. :meth:`obstacle` says what stands in the way, if anything does.
        parameters: those weights, in the order the gradients are wanted in.
        anywhere: whether something holds in any of the processes that run the model in step, each of them asking;
            what fits here but not there is then not done here either.
        plain: what answers a call that does not fit; by default :class:`TwoBackwards`.

    When a batch turns out not to fit (a loss that weighs the tokens of a sequence differently; a layer that mixes
    sequences, such as a mixture of experts; a weight that is used past its layer, as PEFT does with adapters of fused
    experts), that call is answered by :class:`TwoBackwards`, and so are later ones; :attr:`fallback_reason` then says
    why.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        anywhere: Callable[[bool], bool] = bool,
        plain: TwoBackwards | None = None,
    ):
        reason = self.obstacle(module, parameters)
        if reason is not None:
            raise ValueError(f"One backward pass cannot serve both losses here: {reason}. Use TwoBackwards.")
        self.parameters = list(parameters)
        self.fallback_reason: str | None = None
        self._linears = _linears_of(module, self.parameters)
        self._anywhere = anywhere
        self._plain = plain or TwoBackwards(self.parameters)

    @staticmethod
    def obstacle(module: nn.Module, parameters: Sequence[nn.Parameter]) -> str | None:
        """Why these parameters cannot be served, or None if they can."""
        owned = {id(linear.weight) for linear in _linears_of(module, parameters)}
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for parameter in parameters:
            if id(parameter) not in owned:
                return f"{names.get(id(parameter), 'a parameter')} is not the weight of a bias-free nn.Linear"
        of_parameters = {id(parameter) for parameter in parameters}
        for name, child in module.named_modules():
            # PEFT's name for what computes something else from the same matrices.
            if getattr(child, "lora_variant", None) and any(id(p) in of_parameters for p in child.parameters()):
                return f"{name} is a variant of LoRA"
        return None

    def __call__(self, forward: Callable[[], Tensor], weigh: Callable[[Tensor], TokenWeights]) -> TaskGradients:
        if self.fallback_reason is not None:
            return self._plain(forward, weigh)
        tape = _Tape(torch.zeros((), device=self.parameters[0].device, requires_grad=True))
        with self._taped(tape):
            log_probs = forward()
            weights = weigh(log_probs)
            tasks = [w for w in (weights.sft, weights.dpo) if w is not None]
            weighing = torch.stack([w != 0 for w in tasks]).any(dim=0)
            factors = [_per_sequence(w, weighing) for w in tasks]
            if any(factor is None for factor in factors):
                self.fallback_reason = "the loss weighs the tokens of one sequence differently"
            elif tape.rows - {log_probs.shape[0]}:
                self.fallback_reason = "a layer with an adapter does not keep one row per sequence"
            elif any(id(parameter) not in tape.seen for parameter in self.parameters):
                self.fallback_reason = "a weight of an adapter is not used through its layer"
            if self._anywhere(self.fallback_reason is not None):
                self.fallback_reason = self.fallback_reason or "a batch of another process does not fit"
            else:
                # Within the block, because gradient checkpointing runs the forward again during the backward.
                tape.factors = [factor for factor in factors if factor is not None]
                torch.autograd.grad(log_probs, tape.anchor, weighing.to(log_probs.dtype), allow_unused=True)
        if self.fallback_reason is not None:
            return self._plain(forward, weigh)
        grads = [
            [tape.grads[i][id(p)] if id(p) in tape.grads[i] else torch.zeros_like(p) for p in self.parameters]
            for i in range(len(factors))
        ]
        return TaskGradients(grads[0], grads[1] if len(grads) > 1 else None)

    @contextmanager
    def _taped(self, tape: _Tape) -> Iterator[None]:
        for linear in self._linears:
            linear.forward = functools.partial(_taped_linear, linear.weight, tape)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for linear in self._linears:
                del linear.forward  # the class's own shows again


def _pull(log_probs: Tensor, parameters: Sequence[Tensor], weights: Tensor, retain: bool = False) -> list[Tensor]:
    """J^T w, one tensor per parameter; ``retain`` keeps the graph for another one."""
    grads = torch.autograd.grad(log_probs, parameters, weights, retain_graph=retain, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


class _Tape:
    """What the taps of one forward and backward pass share."""

    def __init__(self, anchor: Tensor) -> None:
        self.anchor = anchor
        self.seen: set[int] = set()  # id of each weight whose layer has been called
        self.rows: set[int] = set()  # number of sequences each tap saw; -1 for an input that is not (R, T, d)
        self.factors: list[Tensor] = []  # per task: (R,) the weight of each sequence
        self.grads: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})  # per task: id(parameter) -> gradient

    def record(self, weight: Tensor, inputs: Tensor, grad: Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1])
        for factor, grads in zip(self.factors, self.grads, strict=False):
            # Scaled before rounding to the working precision, so that bf16 does not coarsen the factor itself.
            scaled = (grad.to(factor.dtype) * factor.to(grad.device)[:, None, None]).to(grad.dtype)
            gradient = (scaled.reshape(-1, scaled.shape[-1]).t() @ flat.to(grad.dtype)).to(weight.dtype)
            earlier = grads.get(id(weight))
            grads[id(weight)] = gradient if earlier is None else earlier + gradient


class _Tap(torch.autograd.Function):
    """The identity on a layer's output; on the way back it notes the layer's weight gradients.

    The anchor is a scalar that requires grad: with the layer's own weight detached, it is what keeps the output in the
    graph, and asking for its gradient makes the engine pass every tap.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, weight: Tensor, tape: _Tape) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.weight, ctx.tape = weight, tape
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        ctx.tape.record(ctx.weight, inputs, grad)
        return (grad if ctx.needs_input_grad[0] else None), None, grad.new_zeros(()), None, None


def _taped_linear(weight: Tensor, tape: _Tape, inputs: Tensor) -> Tensor:
    output = F.linear(inputs, weight.detach())
    tape.seen.add(id(weight))
    tape.rows.add(inputs.shape[0] if inputs.dim() == 3 else -1)
    return _Tap.apply(output, inputs.detach(), tape.anchor.to(output.device), weight, tape)


def _linears_of(module: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Linear]:
    of_parameters = {id(parameter) for parameter in parameters}
    linears: list[nn.Linear] = []
    for child in module.modules():
        # A forward of its own, such as accelerate gives to modules it moves between devices, is left in charge.
        if (
            type(child) is nn.Linear
            and child.bias is None
            and id(child.weight) in of_parameters
            and "forward" not in vars(child)
        ):
            linears.append(child)
    return linears


def _per_sequence(weights: Tensor, weighing: Tensor) -> Tensor | None:
    """The factor of each row of (R, T) weights, or None unless it is the same on every token that weighs at all."""
    largest, smallest = weights.amax(dim=1), weights.amin(dim=1)
    factor = torch.where(largest.abs() >= smallest.abs(), largest, smallest)
    return factor if torch.equal(weights, factor[:, None] * weighing) else None
