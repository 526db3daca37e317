"""How sharp a minimum an adapter sits in: the extreme eigenvalues of the Hessian of the loss and of the margin.

An update survives later ones if its margin is large and the margin's curvature kappa is small (CoRSA paper, Eq. 2 and
3); sharpness-aware minimisation lowers the largest eigenvalue of the loss's Hessian (C.1, Eq. 12). Both are measured
here, over the adapter's parameters, without ever forming the Hessian: the Lanczos process (Lanczos, 1950) needs its
products with vectors alone, each two backward passes (Pearlmutter, 1994).

Three vectors of the size of the parameters are kept, and the graph of one micro-batch. Lanczos without
reorthogonalisation finds the extreme eigenvalues all the same; it only finds them again and again (Paige, 1980).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.running import target_logits
from corsa_plugins.model.tokenization import JoinedIds, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Curvature", "CurvatureError", "curvature", "extreme_eigenvalues", "load_curvature", "save_curvature"]

logger = logging.getLogger(__name__)

FUNCTIONS = ("sft_loss", "margin")


class CurvatureError(CorsaError, RuntimeError):
    """A Hessian that cannot be measured: no second derivative, no dependence on the parameters, or NaN."""


@dataclass(frozen=True)
class Curvature:
    """Extreme eigenvalues of the Hessian of a function.

    Attributes:
        largest: The eigenvalue of largest magnitude, with its sign; its magnitude is the spectral norm, kappa in Eq. 2.
        top: The most positive eigenvalue, lambda_max in Eq. 12.
        bottom: The most negative one.
        residual: Bound on the distance of ``largest`` and of ``top`` from an eigenvalue.
        iterations: Products with the Hessian that it took.
        converged: Whether the residual came under the tolerance. If not, the magnitudes are lower bounds.
        value: Of the function.
    """

    largest: float
    top: float
    bottom: float
    residual: float
    iterations: int
    converged: bool
    value: float = math.nan


def curvature(
    model: PreTrainedModel,
    requests: Sequence[EditRequest],
    tokenizer: PreTrainedTokenizerBase,
    of: Sequence[str] = FUNCTIONS,
    parameters: Sequence[nn.Parameter] | None = None,
    *,
    batch_size: int = 8,
    chat_template: bool = False,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Curvature]:
    """Curvature of the loss and of the margin at the parameters' current values.

    * ``"sft_loss"``: mean negative log-likelihood over the tokens of all target_new, as it is trained on;
    * ``"margin"``: m = log p(target_new | prompt) - log p(target_old | prompt), mean over the requests that have a
      target_old.

    The model is in evaluation mode meanwhile, and everything is as it was afterwards. Attention runs on PyTorch's
    plain kernel, the only one with a second derivative. Eigenvalues are as exact as the model's precision: load it in
    float32 to compare small differences.

    Args:
        model: A causal language model or a ``PeftModel``; attention "eager" or "sdpa".
        requests: What the functions are means over.
        tokenizer: The model's.
        of: Which functions.
        parameters: Over which parameters; by default those of LoRA adapters (``lora_`` in the name), else all that
            require gradients.
        batch_size: Sequences per micro-batch; changes memory, not results.
        chat_template: Ask through the chat template.
        tolerance: Largest residual, relative to the magnitude of ``largest``, to call it converged.
        max_iterations: Most products with the Hessian, for each function.
        seed: Of the first vector.
        progress: Show a progress bar.

    Returns:
        For each function its curvature.

    Raises:
        SettingError: A setting is out of range, nothing to measure on, or an attention without second derivatives.
        CurvatureError: As it says.
    """
    unknown = [name for name in of if name not in FUNCTIONS]
    if unknown or not of:
        raise SettingError(f"of is {list(of)}: choose from {', '.join(FUNCTIONS)}")
    for name, number in (("batch_size", batch_size), ("max_iterations", max_iterations)):
        if number < 1:
            raise SettingError(f"{name} is {number}: it must be at least 1")
    if not requests:
        raise SettingError("no requests: give those that the adapter was trained on")
    attention = getattr(model.config, "_attn_implementation", "eager")
    if attention not in ("eager", "sdpa"):
        raise SettingError(
            f"attention {attention!r} has no second derivative: load the model with attn_implementation='eager'"
        )
    chosen = list(parameters) if parameters is not None else _adapter_parameters(model)
    if any(parameter.element_size() < 4 for parameter in chosen):
        logger.warning("the parameters are in half precision: small eigenvalues will be lost in rounding")
    found = {}
    with _second_derivatives(model, chosen):
        for name in of:
            rows = _rows(name, requests, tokenizer, chat_template)
            batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            function = _Function(model, batches, chosen)
            bar = tqdm(total=max_iterations, desc=name, disable=None if progress else True, leave=False)
            with bar:

                def product(vector: list[Tensor], function: _Function = function, bar: Any = bar) -> list[Tensor]:
                    bar.update()
                    return function.product(vector)

                found[name] = extreme_eigenvalues(
                    product, chosen, tolerance=tolerance, max_iterations=max_iterations, seed=seed
                )
            found[name] = Curvature(**{**vars(found[name]), "value": function.value})
    return found


def save_curvature(path: str | os.PathLike[str], found: Mapping[str, Mapping[str, Curvature]]) -> Path:
    """Write what :func:`curvature` found to a JSON file, whole or not at all, for :func:`load_curvature`.

    Args:
        path: For instance ``runs/curvature.json``; ``corsa report`` reads it.
        found: By model (``"LoRA SFT"``, ``"CoRSA"``), what :func:`curvature` gave for it.

    Raises:
        OSError: The file cannot be written.
    """
    plain = {label: {of: asdict(one) for of, one in functions.items()} for label, functions in found.items()}
    for one in (one for functions in plain.values() for one in functions.values()):
        one["value"] = one["value"] if math.isfinite(one["value"]) else None  # strict JSON has no NaN
    return atomic_write_text(path, json.dumps({"curvature": plain}, indent=2, ensure_ascii=False) + "\n")


def load_curvature(path: str | os.PathLike[str]) -> dict[str, dict[str, Curvature]]:
    """What :func:`save_curvature` wrote: curvatures by model and function.

    Raises:
        CurvatureError: The file holds something else.
        OSError: It cannot be read.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))["curvature"]
        return {
            str(label): {
                str(of): Curvature(
                    **{name: float(one[name]) for name in ("largest", "top", "bottom", "residual")},
                    iterations=int(one["iterations"]),
                    converged=bool(one["converged"]),
                    value=math.nan if one["value"] is None else float(one["value"]),
                )
                for of, one in functions.items()
            }
            for label, functions in saved.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CurvatureError(f"{path} holds no curvatures: {error!r}") from error


def extreme_eigenvalues(
    product: Callable[[list[Tensor]], list[Tensor]],
    like: Sequence[Tensor],
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
) -> Curvature:
    """Extreme eigenvalues of a symmetric operator on lists of tensors, by the Lanczos process.

    With T the tridiagonal matrix of k steps, theta an eigenvalue of it and s its unit eigenvector, some eigenvalue of
    the operator lies within beta_k |s_k| of theta.

    Args:
        product: Maps a vector (tensors of the shapes of ``like``) to its product with the operator.
        like: Gives shapes, devices and types; float32 is used where a type is shorter.

    Raises:
        SettingError: There are no parameters.
        CurvatureError: A product is not finite.
    """
    size = sum(tensor.numel() for tensor in like)
    if not size:
        raise SettingError("no parameters: give those of the adapter")
    generator = torch.Generator().manual_seed(seed)
    types = [torch.promote_types(tensor.dtype, torch.float32) for tensor in like]
    vector = [
        torch.randn(tensor.shape, generator=generator, dtype=kind).to(tensor.device)
        for tensor, kind in zip(like, types, strict=True)
    ]
    _scale(vector, 1 / _norm(vector))
    before = [torch.zeros_like(part) for part in vector]
    alphas: list[float] = []
    betas: list[float] = []
    low = high = residual = 0.0
    converged = False
    rounding = max(torch.finfo(kind).eps for kind in types)
    while not converged and len(alphas) < max_iterations:
        image = [part.to(kind) for part, kind in zip(product(vector), types, strict=True)]
        alpha = _dot(image, vector)
        for part, v, u in zip(image, vector, before, strict=True):
            part.sub_(v, alpha=alpha).sub_(u, alpha=betas[-1] if betas else 0.0)
        beta = _norm(image)
        if not math.isfinite(alpha) or not math.isfinite(beta):
            raise CurvatureError("a product with the Hessian is not finite: the model or its parameters hold NaN")
        alphas.append(alpha)
        matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        if betas:
            off = torch.tensor(betas, dtype=torch.float64)
            matrix += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        low, high = float(values[0]), float(values[-1])
        scale = max(abs(low), abs(high))
        ends = {float(vectors[-1, -1].abs()), float(vectors[-1, 0 if abs(low) > abs(high) else -1].abs())}
        residual = beta * max(ends)
        converged = residual <= tolerance * scale or len(alphas) == size == 1
        betas.append(beta)
        if beta <= rounding * scale:  # the vectors so far span all that the operator does to the first one
            converged = True
        else:
            _scale(image, 1 / beta)
            before, vector = vector, image
    largest = low if abs(low) > abs(high) else high
    return Curvature(largest, high, low, residual, len(alphas), converged)


def _adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    named = list(model.named_parameters())
    return [p for name, p in named if "lora_" in name] or [p for _, p in named if p.requires_grad]


def _rows(
    name: str, requests: Sequence[EditRequest], tokenizer: PreTrainedTokenizerBase, chat_template: bool
) -> list[tuple[JoinedIds, float]]:
    """Sequences with the weight of each one's log-probability in the function; those of a length together."""

    def joined(request: EditRequest, target: str) -> JoinedIds:
        return join(tokenizer, request.prompt, target, chat_template)

    if name == "sft_loss":
        sequences = [joined(request, request.target_new) for request in requests]
        tokens = sum(len(sequence.target_ids) for sequence in sequences)
        rows = [(sequence, -1 / tokens) for sequence in sequences]
    else:
        pairs = [(request, request.target_old) for request in requests if request.target_old is not None]
        if not pairs:
            raise SettingError("no request has a target_old: there is no margin; give it, or ask for sft_loss alone")
        rows = [(joined(request, request.target_new), 1 / len(pairs)) for request, _ in pairs]
        rows += [(joined(request, old), -1 / len(pairs)) for request, old in pairs]
    return sorted(rows, key=lambda row: len(row[0].prompt_ids) + len(row[0].target_ids))


class _Function:
    """A weighted sum of sequences' log-probabilities, a micro-batch at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Sequence[tuple[JoinedIds, float]]],
        parameters: list[nn.Parameter],
    ) -> None:
        self.model = model
        self.batches = batches
        self.parameters = parameters
        self.value = math.nan

    def product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian's product with ``vector``: the gradient of (gradient . vector)."""
        total = [torch.zeros_like(part) for part in vector]
        value, used = 0.0, False
        for batch in self.batches:
            loss = self._evaluate(batch)
            value += float(loss.detach())
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
            terms = [(g * v.to(g.dtype)).sum() for g, v in zip(gradients, vector, strict=True) if g is not None]
            used = used or bool(terms)
            slope: Any = sum(terms)
            if not terms or not slope.requires_grad:
                continue
            try:
                second = torch.autograd.grad(slope, self.parameters, allow_unused=True)
            except RuntimeError as error:
                raise CurvatureError(
                    f"the model has an operation without a second derivative ({error}): load it unquantised, with "
                    "attn_implementation='eager'"
                ) from error
            for part, h in zip(total, second, strict=True):
                if h is not None:
                    part.add_(h)
        if not used:
            raise CurvatureError(
                "the function does not depend on the parameters: is the adapter active, and not merged into the model?"
            )
        self.value = value
        return total

    def _evaluate(self, batch: Sequence[tuple[JoinedIds, float]]) -> Tensor:
        rows = [row for row, _ in batch]
        predicting = target_logits(self.model, rows)
        total = predicting[0].new_zeros(())
        for (row, weight), logits in zip(batch, predicting, strict=True):
            target = torch.tensor(row.target_ids, device=logits.device)
            total = total + weight * logits.log_softmax(-1).gather(-1, target[:, None]).sum()
        return total


@contextlib.contextmanager
def _second_derivatives(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for ``parameters``, and the attention kernel that can be derived twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with frozen(model, but=parameters), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return math.fsum(float(torch.sum(x * y, dtype=torch.float64)) for x, y in zip(a, b, strict=True))


def _norm(a: Sequence[Tensor]) -> float:
    return math.sqrt(_dot(a, a))


def _scale(a: Sequence[Tensor], factor: float) -> None:
    for part in a:
        part.mul_(factor)
