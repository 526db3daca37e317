"""Adam on the value vectors of a batch of requests, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from corsa_plugins.alphaedit.values.loss import BatchLoss
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.errors import CorsaError

__all__ = ["LossScale", "NonFiniteValueError", "Optimum", "optimise"]


class NonFiniteValueError(CorsaError, FloatingPointError):
    """The loss of a value vector, or its gradient, is NaN or infinite; the message names the request."""


@dataclass(frozen=True)
class Optimum:
    """Where the optimisation of one request ended.

    Attributes:
        vector: (hidden,), v* = h + delta.
        initial: (hidden,), h.
        loss: The whole loss there.
        log_prob: Of the target behind the bare prompt.
        steps: Updates made.
    """

    vector: Tensor
    initial: Tensor
    loss: float
    log_prob: float
    steps: int


def optimise(loss: BatchLoss, settings: ValueSettings, names: Sequence[str], bar: tqdm) -> dict[int, Optimum]:
    """Minimise the loss of every request of the batch; each leaves the batch as it is done.

    Args:
        loss: Of the batch, which shrinks.
        settings: Steps, rate, limits.
        names: Of the requests, for messages.
        bar: Counts requests.

    Returns:
        By place in the batch.

    Raises:
        NonFiniteValueError: NaN or infinity, naming the request.
    """
    optima: dict[int, Optimum] = {}
    active = list(range(len(loss)))
    delta = torch.zeros_like(loss.initial)
    adam = _Adam(delta)
    enough = settings.stop_most_probable
    met = torch.zeros(len(loss), dtype=torch.int64)  # evaluations so far at which the target was the most probable
    half = any(p.dtype == torch.float16 for p in loss.architecture.model.parameters())
    scale = LossScale(2.0**12 if half else 1.0)
    for step in range(settings.steps):
        last = step == settings.steps - 1
        with torch.set_grad_enabled(not last):
            delta.requires_grad_(not last)
            now = loss(delta)
        totals, log_probs = now.total.tolist(), now.log_prob.tolist()
        for i, total in enumerate(totals):
            _require_finite(total, f"{names[active[i]]}: the loss of its value vector is {total}", step)
        met = met + now.most_probable.cpu()
        said = met >= enough if enough else torch.zeros_like(met, dtype=torch.bool)
        done = [i for i, total in enumerate(totals) if last or total < settings.stop_loss or said[i]]
        for i in done:
            vector = (loss.initial[i] + delta[i]).detach()
            optima[active[i]] = Optimum(vector, loss.initial[i], totals[i], log_probs[i], step)
        bar.update(len(done))
        if len(done) == len(active):
            break
        gradient = scale.gradient(now.total, delta)
        delta = delta.detach()
        if done:
            kept = [i for i in range(len(active)) if i not in set(done)]
            loss.keep(kept)
            adam.keep(kept)
            active, met = [active[i] for i in kept], met[kept]
            gradient, delta = gradient[kept], delta[kept]
        for i, norm in enumerate(torch.linalg.vector_norm(gradient, dim=-1).tolist()):
            _require_finite(norm, f"{names[active[i]]}: the gradient of its value vector is {norm}", step)
        delta = delta - _rates(loss, settings)[:, None] * adam.direction(gradient)
        delta = _within(delta, settings.clamp * loss.norms)
    return optima


class _Adam:
    """Adam's direction, by hand: torch's holds one rate and one set of moments for a batch that here loses rows."""

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, like: Tensor) -> None:
        self._first, self._second = torch.zeros_like(like), torch.zeros_like(like)
        self._step = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._first, self._second = self._first[list(rows)], self._second[list(rows)]

    def direction(self, gradient: Tensor) -> Tensor:
        """(n, hidden), what a rate of 1 would take off, after one gradient (n, hidden) more."""
        self._step += 1
        first, second = self.BETAS
        self._first = first * self._first + (1 - first) * gradient
        self._second = second * self._second + (1 - second) * gradient.square()
        mean = self._first / (1 - first**self._step)
        return mean / ((self._second / (1 - second**self._step)).sqrt() + self.EPSILON)


def _rates(loss: BatchLoss, settings: ValueSettings) -> Tensor:
    """(n,), Adam's rate for each request."""
    if settings.lr_unit == "absolute":
        return torch.full_like(loss.norms, settings.lr)
    return settings.lr * loss.norms / loss.initial.shape[-1] ** 0.5


def _within(delta: Tensor, limits: Tensor) -> Tensor:
    """``delta`` (n, hidden), scaled back to norms of at most ``limits`` (n,)."""
    norms = torch.linalg.vector_norm(delta, dim=-1)
    return torch.where((norms > limits)[:, None], delta * (limits / norms)[:, None], delta)


class LossScale:
    """float16 has no room for small gradients: the loss is scaled up, by less once that overflows.

    By hand: ``torch.amp.GradScaler`` skips the step of a gradient that overflows, and every step here counts.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def gradient(self, totals: Tensor, delta: Tensor) -> Tensor:
        """Of the sum of ``totals`` (n,) by ``delta``."""
        while True:
            scale = torch.full_like(totals, self.factor)
            (scaled,) = torch.autograd.grad([totals], [delta], [scale], retain_graph=self.factor > 1)
            if self.factor == 1 or scaled.isfinite().all():
                return scaled / self.factor
            self.factor = max(1.0, self.factor / 16)


def _require_finite(value: float, what: str, step: int) -> None:
    if value - value != 0:
        raise NonFiniteValueError(f"{what}, after {step} updates; lower lr, or look for NaN in the model's weights")
