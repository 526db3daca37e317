"""Algorithm 1, lines 3 to 15: two looks, finite whatever the gradients, and parameters that come back."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.corsa import (
    CorsaSettings,
    NonFiniteGradientError,
    TaskGradients,
    corsa_step,
)


def test_sharpness_aware_step_sees_the_curvature() -> None:
    """On f(x) = x^2 / 2 the gradient at phi + rho * sign(phi) is phi + rho * sign(phi)."""
    phi = [torch.tensor([2.0], dtype=torch.float64)]
    step = corsa_step(lambda: TaskGradients([phi[0].clone()], None), phi, CorsaSettings(dpo_weight=0, sam_rho=0.25))
    assert step.update[0].item() == pytest.approx(2.25)
    assert step.perturbation_norm == pytest.approx(0.25)


def test_step_restores_the_parameters_and_names_the_loss_when_a_gradient_is_not_finite() -> None:
    phi = [torch.ones(3)]
    calls = []

    def gradients() -> TaskGradients:
        calls.append(phi[0].clone())
        bad = torch.tensor([1.0, float("inf"), 0.0]) if len(calls) == 2 else torch.ones(3)
        return TaskGradients([torch.ones(3)], [bad])

    with pytest.raises(NonFiniteGradientError, match=r"DPO gradient is not finite .* at the perturbed parameters"):
        corsa_step(gradients, phi, CorsaSettings())
    assert torch.equal(phi[0], torch.ones(3))
    assert not torch.equal(calls[1], calls[0])


@pytest.mark.parametrize("form", ["sequential", "simultaneous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("size", [25, 100_000])
def test_a_step_on_exactly_opposed_gradients_is_finite_and_keeps_to_its_radius(
    form: str, dtype: torch.dtype, scale: float, size: int
) -> None:
    """Rounding is all that is left of a gradient then; dividing by its norm would make any number of it."""
    g = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    phi = [torch.zeros(size, dtype=dtype)]
    seen = []

    def gradients() -> TaskGradients:
        seen.append(phi[0].clone())
        return TaskGradients([g], [-scale * g])

    step = corsa_step(gradients, phi, CorsaSettings(sam_rho=0.05, pcgrad_form=form))  # type: ignore[arg-type]
    assert float(seen[1].double().norm()) <= 0.05 * (1 + 1e-5)
    assert step.perturbation_norm == pytest.approx(float(seen[1].double().norm()), rel=1e-5, abs=1e-9)
    assert float(step.update[0].norm()) <= 2 * float(g.norm()) * max(1.0, scale)


def test_the_update_is_the_merged_gradient_at_the_perturbed_point() -> None:
    """On two quadratics, with the algorithm written out."""
    phi = [torch.tensor([3.0, -1.0], dtype=torch.float64)]
    sft, dpo = (torch.tensor(target, dtype=torch.float64) for target in ([1.0, 0.0], [0.0, 2.0]))

    def gradients() -> TaskGradients:
        return TaskGradients([phi[0] - sft], [phi[0] - dpo])

    start = phi[0].clone()
    first = (start - sft) + 0.5 * (start - dpo)
    point = start + 0.1 * first / first.norm()
    step = corsa_step(gradients, phi, CorsaSettings(dpo_weight=0.5, sam_rho=0.1, pcgrad=False))
    torch.testing.assert_close(step.update[0], (point - sft) + 0.5 * (point - dpo), rtol=1e-12, atol=0)
    assert torch.equal(phi[0], start)
    assert step.conflicts == (False, False)
    assert len(step.cosine) == 2


def test_without_sam_one_look_gives_the_update() -> None:
    looks = []

    def gradients() -> TaskGradients:
        looks.append(1)
        return TaskGradients([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 2.0])])

    step = corsa_step(gradients, [torch.zeros(2)], CorsaSettings(sam_rho=0.0))
    assert len(looks) == 1
    assert torch.equal(step.update[0], torch.tensor([1.0, 2.0]))
    assert (step.cosine, step.conflicts, step.perturbation_norm) == ((0.0,), (False,), 0.0)


def test_a_loss_that_is_not_finite_is_named_with_the_point() -> None:
    def gradients() -> TaskGradients:
        raise NonFiniteGradientError("The SFT loss is not finite (NaN or infinity)")

    with pytest.raises(NonFiniteGradientError, match=r"SFT loss is not finite .* at the current parameters"):
        corsa_step(gradients, [torch.zeros(2)], CorsaSettings())
