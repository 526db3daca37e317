"""The two losses as functions of per-token log-probabilities, and how much each token weighs in them."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from corsa_plugins.corsa import NonFiniteGradientError, dpo_loss, margin, sft_loss, token_weights
from corsa_plugins.corsa.objective import sequence_log_probs

MASK = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.float64)
REFERENCE = torch.tensor([-2.0, -1.0], dtype=torch.float64), torch.tensor([-1.5, -3.0], dtype=torch.float64)


def some_log_probs() -> Tensor:
    """Two pairs, zero off the completions."""
    drawn = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return -3 * drawn * MASK


def test_sft_is_the_mean_over_the_completion_tokens_of_the_chosen_rows() -> None:
    log_probs = some_log_probs()
    expected = -(log_probs[0, 1] + log_probs[0, 2] + log_probs[1, 2]) / 3
    torch.testing.assert_close(sft_loss(log_probs, MASK), expected)
    others = log_probs.clone()
    others[2:] = -7.0
    assert torch.equal(sft_loss(others, MASK), sft_loss(log_probs, MASK))


def test_dpo_at_the_reference_is_log_two_whatever_beta() -> None:
    log_probs = some_log_probs()
    for beta in (0.1, 1.0, 10.0):
        assert float(dpo_loss(log_probs, *sequence_log_probs(log_probs), beta)) == pytest.approx(log(2))


def test_dpo_is_the_loss_of_the_margin_against_the_references() -> None:
    log_probs = some_log_probs()
    gain = margin(log_probs) - (REFERENCE[0] - REFERENCE[1])
    expected = torch.log1p(torch.exp(-0.3 * gain)).mean()
    torch.testing.assert_close(dpo_loss(log_probs, *REFERENCE, beta=0.3), expected)


def test_the_margin_changes_its_sign_when_the_answers_change_places() -> None:
    log_probs = some_log_probs()
    torch.testing.assert_close(margin(torch.cat([log_probs[2:], log_probs[:2]])), -margin(log_probs))


def test_the_weights_pulled_through_a_model_are_the_gradients_of_the_losses() -> None:
    """J^T w is the gradient by the parameters, for a model that is not linear in them."""
    theta = torch.linspace(0.5, 1.5, 16, dtype=torch.float64).reshape(4, 4).requires_grad_()

    def model() -> Tensor:
        return -torch.tanh(theta @ theta.t()) * MASK

    log_probs = model()
    weights = token_weights(log_probs, lambda x: sft_loss(x, MASK), lambda x: dpo_loss(x, *REFERENCE))
    assert weights.dpo is not None
    for pulled, loss in ((weights.sft, sft_loss(model(), MASK)), (weights.dpo, dpo_loss(model(), *REFERENCE))):
        (ours,) = torch.autograd.grad(log_probs, theta, pulled, retain_graph=True)
        (expected,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    assert float(weights.sft_loss) == float(sft_loss(log_probs, MASK))
    assert weights.dpo_loss is not None
    assert float(weights.dpo_loss) == float(dpo_loss(log_probs, *REFERENCE))


def test_within_a_sequence_every_completion_token_weighs_the_same() -> None:
    """What one backward pass for both losses stands on."""
    weights = token_weights(some_log_probs(), lambda x: sft_loss(x, MASK), lambda x: dpo_loss(x * MASK, *REFERENCE))
    assert weights.dpo is not None
    for tensor in (weights.sft, weights.dpo):
        for row, mask in zip(tensor, MASK.bool(), strict=True):
            assert len(set(row[mask].tolist())) == 1
            assert not row[~mask].any()
    assert not weights.sft[2:].any()


def test_the_graph_of_the_model_is_not_touched() -> None:
    leaf = some_log_probs().requires_grad_()
    log_probs = leaf * 1
    with torch.no_grad():
        token_weights(log_probs, lambda x: sft_loss(x, MASK), None)
    assert leaf.grad is None
    log_probs.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


@pytest.mark.parametrize("which", ["SFT", "DPO"])
def test_a_loss_or_derivative_that_is_not_finite_is_refused_by_name(which: str) -> None:
    log_probs = some_log_probs()

    def fine(x: Tensor) -> Tensor:
        return x.sum()

    def steep(x: Tensor) -> Tensor:
        return (x - x.detach()).abs().sqrt().sum()  # 0, with an infinite slope

    def infinite(x: Tensor) -> Tensor:
        return x.sum() / 0

    for bad in (steep, infinite):
        losses = (bad, fine) if which == "SFT" else (fine, bad)
        with pytest.raises(NonFiniteGradientError, match=f"The {which} loss is not finite"):
            token_weights(log_probs, *losses)
