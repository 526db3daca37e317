"""The curvature of the loss and of the margin at the current parameters."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from corsa_plugins.bench.curvature.functions import FUNCTIONS, Function, weighted_rows
from corsa_plugins.bench.curvature.lanczos import MAX_ITERATIONS, TOLERANCE, Curvature, Search, extreme_eigenvalues
from corsa_plugins.data.requests import EditRequest, input_key
from corsa_plugins.errors import SettingError
from corsa_plugins.model.borrowing import frozen
from corsa_plugins.model.identity import model_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["curvature"]

logger = logging.getLogger(__name__)


def curvature(
    model: PreTrainedModel,
    requests: Sequence[EditRequest],
    tokenizer: PreTrainedTokenizerBase,
    of: Sequence[str] = FUNCTIONS,
    parameters: Sequence[nn.Parameter] | None = None,
    *,
    batch_size: int = 8,
    chat_template: bool = False,
    progress: bool = False,
    **search: Unpack[Search],
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
        progress: Show a progress bar.
        search: ``tolerance``, ``max_iterations`` for each function, and ``seed``:
            :class:`~corsa_plugins.bench.curvature.lanczos.Search`.

    Returns:
        For each function its curvature.

    Raises:
        SettingError: A setting is out of range, nothing to measure on, or an attention without second derivatives.
        CurvatureError: As it says.
    """
    unknown = [name for name in of if name not in FUNCTIONS]
    if unknown or not of:
        raise SettingError(f"of is {list(of)}: choose from {', '.join(FUNCTIONS)}")
    if batch_size < 1:
        raise SettingError(f"batch_size is {batch_size}: it must be at least 1")
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
    curvatures = {}
    settings = {"tolerance": TOLERANCE, "max_iterations": MAX_ITERATIONS, "chat_template": chat_template, **search}
    seed = settings.pop("seed", 0)
    asked = {**model_key(model, tokenizer), **input_key(requests), "seed": seed, "settings": settings}
    with _second_derivatives(model, chosen):
        for name in of:
            rows = weighted_rows(name, requests, tokenizer, chat_template)
            batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            measured = _curvature(Function(model, batches, chosen), name, progress, search)
            curvatures[name] = replace(measured, about=asked)
    return curvatures


def _curvature(function: Function, name: str, progress: bool, search: Search) -> Curvature:
    most = search.get("max_iterations", MAX_ITERATIONS)
    # disable=None: no bar where nobody watches, as in a log file
    with tqdm(total=most, desc=name, disable=None if progress else True, leave=False) as bar:

        def product(vector: list[Tensor]) -> list[Tensor]:
            bar.update()
            return function.product(vector)

        measured = extreme_eigenvalues(product, function.parameters, **search)
    return replace(measured, value=function.value)


def _adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    named = list(model.named_parameters())
    return [p for name, p in named if "lora_" in name] or [p for _, p in named if p.requires_grad]


@contextlib.contextmanager
def _second_derivatives(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for ``parameters``, and the attention kernel that can be derived twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with frozen(model, but=parameters), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield
