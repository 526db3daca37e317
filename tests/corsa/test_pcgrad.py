"""Identities of the merged gradient, over random gradients of several tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.corsa import Gram, MergeWeights, TaskGradients, pcgrad_weights
from tests.oracles import corsa as oracle

SHAPES = [(3, 4), (5,), (2, 2, 2)]
EPS = 1e-12

gradients = st.builds(
    lambda seed, angle, scale: make(seed, angle, scale),
    st.integers(0, 2**31 - 1),
    st.floats(-0.999, 0.999),
    st.floats(1e-3, 1e3),
)


def make(seed: int, cosine: float, scale: float) -> TaskGradients:
    """Two gradients at a given cosine, the second ``scale`` times as long."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(torch.Size(shape).numel() for shape in SHAPES)
    g, other = torch.randn(2, size, generator=generator, dtype=torch.float64)
    other = other - (other @ g) / (g @ g) * g
    other = other / other.norm() * g.norm()
    h = scale * (cosine * g + (1 - cosine**2) ** 0.5 * other)
    return TaskGradients(split(g), split(h))


def split(vector: torch.Tensor) -> list[torch.Tensor]:
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [part.view(shape) for part, shape in zip(vector.split(sizes), SHAPES, strict=True)]


def join(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def gram_of(pair: TaskGradients) -> Gram:
    return Gram.of(pair.sft, pair.dpo)


@settings(max_examples=200, deadline=None)
@given(gradients, st.floats(0, 10), st.sampled_from(["sequential", "simultaneous"]))
def test_equals_the_literal_projection(pair: TaskGradients, weight: float, form: str) -> None:
    ours = join(pair.merge(pcgrad_weights(gram_of(pair), weight, form, EPS)))
    literal = oracle.pcgrad(join(pair.sft), join(pair.dpo), weight, EPS, form)
    scale = join(pair.sft).norm() + weight * join(pair.dpo).norm()
    # The weights grow as 1 / (1 - cos^2) when the gradients oppose each other; so does rounding.
    assert (ours - literal).norm() <= 1e-9 * (scale + literal.norm())


@given(gradients, st.floats(0, 10), st.sampled_from(["sequential", "simultaneous"]))
def test_without_a_conflict_it_is_the_plain_sum(pair: TaskGradients, weight: float, form: str) -> None:
    gram = gram_of(pair)
    if not gram.conflicting:
        assert pcgrad_weights(gram, weight, form, EPS) == MergeWeights(1.0, weight)


@given(gradients)
def test_simultaneous_form_leaves_neither_gradient_opposed(pair: TaskGradients) -> None:
    gram = gram_of(pair)
    merged = join(pair.merge(pcgrad_weights(gram, 1.0, "simultaneous", EPS)))
    for gradient in (join(pair.sft), join(pair.dpo)):
        assert merged @ gradient >= -1e-9 * merged.norm() * gradient.norm()


@given(gradients)
def test_sequential_form_never_opposes_the_sft_gradient_less_than_its_own_projection(pair: TaskGradients) -> None:
    """Line 6 makes g_sft' orthogonal to g_dpo, whatever comes after."""
    gram = gram_of(pair)
    if gram.conflicting:
        first = join(pair.merge(pcgrad_weights(gram, 0.0, "sequential", EPS)))
        assert abs(first @ join(pair.dpo)) <= 1e-6 * join(pair.sft).norm() * join(pair.dpo).norm()


def test_inner_products_survive_float32_tensors() -> None:
    """A float32 sum of a million small squares would be off in the fifth digit."""
    small = torch.full((1_000_000,), 1e-3)
    small[0] = 1e3
    gram = Gram.of([small], [small])
    assert gram.sft_sft == pytest.approx(1e6 + 999_999 * float(small[1]) ** 2, rel=1e-12)
    assert gram.cosine == pytest.approx(1.0)
