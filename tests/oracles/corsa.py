"""Algorithm 1 of papers/corsa.md, line by line, in float64.

Sequences are run one at a time, without padding, through the model's own full logits; gradients are one flat vector;
the reference is the model with its adapter switched off, run every time it is needed. Nothing is shared with the
product.
"""

from dataclasses import dataclass

import torch


@dataclass
class Settings:
    dpo_weight: float = 1.0
    beta: float = 0.1
    rho: float = 0.05
    eps: float = 1e-12
    pcgrad: bool = True
    form: str = "sequential"


def answer_log_probs(model, prompt, completion):
    """log p of each completion token given what precedes it."""
    ids = torch.tensor([prompt + completion])
    log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    return torch.stack([log_p[len(prompt) + i - 1, token] for i, token in enumerate(completion)])


def sft_loss(model, batch):
    """Mean over the completion tokens of y+ of -log p."""
    log_probs = [answer_log_probs(model, row["prompt_ids"], row["chosen_ids"]) for row in batch]
    return -torch.cat(log_probs).mean()


def dpo_loss(model, batch, beta):
    losses = []
    for row in batch:
        new = answer_log_probs(model, row["prompt_ids"], row["chosen_ids"]).sum()
        old = answer_log_probs(model, row["prompt_ids"], row["rejected_ids"]).sum()
        with torch.no_grad(), model.disable_adapter():
            ref_new = answer_log_probs(model, row["prompt_ids"], row["chosen_ids"]).sum()
            ref_old = answer_log_probs(model, row["prompt_ids"], row["rejected_ids"]).sum()
        losses.append(-torch.log(torch.sigmoid(beta * (new - ref_new) - beta * (old - ref_old))))
    return torch.stack(losses).mean()


def flat_gradient(loss, phi):
    grads = torch.autograd.grad(loss, phi, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(phi, grads, strict=True)]
    )


def pcgrad(g_sft, g_dpo, weight, eps, form):
    """Lines 4-8 (sequential), or the text's Pi(.;.) (simultaneous)."""
    g1, g2 = g_sft, g_dpo
    dp = g1 @ g2
    if dp < 0:
        if form == "sequential":
            g1 = g1 - dp / (g2 @ g2 + eps) * g2
            g2 = g2 - dp / (g1 @ g1 + eps) * g1
        else:
            g1, g2 = g1 - dp / (g2 @ g2 + eps) * g2, g2 - dp / (g1 @ g1 + eps) * g1
    return g1 + weight * g2


def merged(model, batch, phi, s):
    g_sft = flat_gradient(sft_loss(model, batch), phi)
    if s.dpo_weight == 0:
        return g_sft
    g_dpo = flat_gradient(dpo_loss(model, batch, s.beta), phi)
    if not s.pcgrad:
        return g_sft + s.dpo_weight * g_dpo
    return pcgrad(g_sft, g_dpo, s.dpo_weight, s.eps, s.form)


def shift(phi, vector):
    start = 0
    with torch.no_grad():
        for p in phi:
            p.add_(vector[start : start + p.numel()].view_as(p))
            start += p.numel()


def update(model, batch, phi, s):
    """Lines 3-15: the direction handed to the optimiser."""
    if s.rho == 0:
        return merged(model, batch, phi, s)
    saved = [p.detach().clone() for p in phi]
    g_pc = merged(model, batch, phi, s)
    shift(phi, s.rho * g_pc / (torch.linalg.vector_norm(g_pc) + s.eps))
    g_tilde = merged(model, batch, phi, s)
    with torch.no_grad():
        for p, original in zip(phi, saved, strict=True):
            p.copy_(original)
    return g_tilde


def train(model, steps, phi, optimizer, s):
    """``steps`` is a list of optimiser steps, each a list of micro-batches, each a list of rows."""
    for micro_batches in steps:
        mean = sum(update(model, batch, phi, s) for batch in micro_batches) / len(micro_batches)
        start = 0
        for p in phi:
            p.grad = mean[start : start + p.numel()].view_as(p).clone()
            start += p.numel()
        optimizer.step()
        optimizer.zero_grad()
