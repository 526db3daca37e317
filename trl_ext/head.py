"""Per-token log-probabilities of completion tokens alone.

`DPOTrainer` gives its model a fused language-modelling head. On CUDA it projects completion positions only and never
holds the full logits: there it stays. Elsewhere it projects every position, prompt included, and it sums in float32
whatever the model's precision; here is a head for those cases that projects completion positions only, in the model's
own precision or float32, whichever is finer.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from corsa_plugins.model.borrowing import eval_mode
from corsa_plugins.model.limits import full_shape
from trl_ext._trl import FusedCausalLMOutput

__all__ = ["add_completion_head", "has_completion_head", "remove_completion_head"]

# Logits held at once, in elements: 2**27 float32 are 512 MiB. Past it the projection is done in pieces, each of which
# is computed again in the backward pass instead of being kept.
_LOGITS_AT_ONCE = 2**27


@dataclass(frozen=True)
class _LogitMap:
    """What a model does to ``hidden @ head.weight.T``: a scale, then a soft cap. Read from the configuration by the
    names transformers gives them, and verified against the model's own logits before use."""

    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> _LogitMap:
        config = model.config.get_text_config()
        scale = 1.0
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if getattr(config, name, None) is not None:
                scale = float(getattr(config, name))
                break
        else:
            if getattr(config, "logits_scaling", None) is not None:
                scaling = float(config.logits_scaling)
                scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits * self.scale if self.scale != 1.0 else logits
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap is not None else logits


def add_completion_head(model: PreTrainedModel, before: Any = None) -> None:
    """Answer ``model(..., labels=labels, fused_lm_head=True)`` with completion positions only, on any device.

    To be called after TRL's ``add_fused_lm_head``, whose interface it keeps: labels (R, T) are -100 off the completion,
    and every field of the returned ``FusedCausalLMOutput`` is (R, T - 1) and zero there. Calls without
    ``fused_lm_head`` reach the model unchanged. Calling it again changes nothing.

    Rows that share their beginnings (:mod:`corsa_plugins.model.sharing`) come with ``places`` (R, T - 1), where each
    token of the rows of ``labels`` stands among those that are run; the answer is that of the rows themselves.

    Args:
        model: changed in place: its ``forward`` is replaced.
        before: the ``forward`` that the instance had before TRL's head, if it had one of its own;
            :func:`remove_completion_head` puts it back.

    A model whose logits are not a scaled, soft-capped projection of its last hidden state keeps TRL's head.
    """
    if has_completion_head(model):
        return
    fused_forward = model.forward
    logit_map = _LogitMap.of(model)
    if not _explains_logits(model, logit_map):
        return

    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, places: Tensor | None = None, **kwargs: Any
    ) -> Any:
        labels = kwargs.get("labels")
        ours = places is not None or not (labels is None or labels.is_cuda or kwargs.get("output_router_logits"))
        if not fused_lm_head or labels is None or not ours:
            return fused_forward(*args, **kwargs, **({"fused_lm_head": True} if fused_lm_head else {}))
        del kwargs["labels"]
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        targets = labels[:, 1:].to(hidden.device)
        mask = targets != -100
        predicting = hidden[:, :-1][mask] if places is None else hidden.flatten(0, 1)[places.to(hidden.device)[mask]]
        fields = _score(predicting, targets[mask], self.get_output_embeddings(), logit_map)
        fields = tuple(x.new_zeros(mask.shape).masked_scatter(mask, x) for x in fields)
        log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = fields
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / mask.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=entropy,
            log_sum_sq_probs=log_sum_sq_probs,
            mean_logits=mean_logits,
            is_top1=is_top1,
            label_mask=mask,
        )

    # `generate` reads the signature of the forward to validate its arguments.
    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]
    forward.corsa_before = before  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def remove_completion_head(model: PreTrainedModel) -> None:
    """Undo :func:`add_completion_head`, and TRL's head under it; nothing happens to a model without ours.

    A trainer puts its heads on the model it is given. The next trainer of the same model would put its own around
    them.
    """
    if has_completion_head(model):
        before = model.forward.__func__.corsa_before
        del model.forward
        if before is not None:
            model.forward = before


def has_completion_head(model: PreTrainedModel) -> bool:
    """Whether :func:`add_completion_head` has put its head on the model."""
    return hasattr(getattr(vars(model).get("forward"), "__func__", None), "corsa_before")


def _score(hidden: Tensor, targets: Tensor, head: torch.nn.Module, logit_map: _LogitMap) -> tuple[Tensor, ...]:
    """Log-probability, entropy, log of the sum of squared probabilities, mean logit and top-1 hit of each of N
    positions, from hidden states (N, d)."""

    def piece(h: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        logits = logit_map(head(h))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        log_p = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(log_p.exp() * log_p).sum(-1)
            fields = entropy, torch.logsumexp(2 * log_p, -1), logits.mean(-1), logits.argmax(-1) == t
        return (log_p.gather(-1, t[:, None]).squeeze(-1), *fields)

    vocabulary = full_shape(head.weight)[0]  # type: ignore[arg-type]
    rows = max(1, _LOGITS_AT_ONCE // vocabulary)
    if len(targets) <= rows:
        return piece(hidden, targets)
    pieces = [
        checkpoint(piece, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return tuple(torch.cat(field) for field in zip(*pieces, strict=True))


def _explains_logits(model: PreTrainedModel, logit_map: _LogitMap) -> bool:
    """Whether the projection reproduces the model's own logits on two tokens: knowing is better than assuming."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(model, "base_model") or model.base_model is model:
        return False
    with eval_mode(model):
        ids = torch.tensor([[0, 1]], device=model.device)
        own = model(input_ids=ids, use_cache=False).logits
        ours = logit_map(head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state))
        return own.shape == ours.shape and torch.allclose(own.float(), ours.float(), rtol=1e-3, atol=1e-3)
