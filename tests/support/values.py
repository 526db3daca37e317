"""Value vectors of small models, by the product and by the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.values.search import Values, ValueSettings, find_values
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import find_architecture
from tests.oracles import values as oracle
from tests.support.families import CONTEXTS, REQUESTS

# At these the limit on the norm is met, or some requests end early and others do not; the tests check that they do.
CLAMPED = ValueSettings(steps=6, lr=0.3, clamp=0.1, weight_decay=0.01)
EARLY = ValueSettings(steps=8, lr=0.5, clamp=20.0, weight_decay=0.05, stop_loss=6.5, kl_factor=0.2)
MOST_PROBABLE = ValueSettings(steps=60, lr=0.3, clamp=100.0, weight_decay=0.01, stop_loss=0.0)
TAUGHT = ValueSettings(steps=20, lr=0.3, clamp=10.0, lr_unit="relative", weight_decay=0.01, stop_loss=2.0)
KNOWN = [
    EditRequest(prompt="The capital of France is", target_new="Rome", subject="France"),
    EditRequest(prompt="Anna Berg was born in", target_new="Paris", subject="Anna Berg"),
    EditRequest(prompt="The capital of Italy is", target_new="Madrid", subject="Italy"),
]


def literal(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    layer: int,
    settings: ValueSettings,
    request: EditRequest,
) -> Any:
    parts = find_architecture(model)
    early = None
    if settings.loss_layer is not None:
        early = (parts.block(settings.loss_layer).module, parts.norm.module, parts.head.module)
    return oracle.value(
        model, tokenizer, request.prompt, request.subject, request.target_new, CONTEXTS, parts.block(layer).module,
        steps=settings.steps, lr=settings.lr, weight_decay=settings.weight_decay, clamp=settings.clamp,
        kl_factor=settings.kl_factor, stop_loss=settings.stop_loss, early=early,
        stop_most_probable=settings.stop_most_probable,
    )  # fmt: skip


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    layer: int,
    settings: ValueSettings,
    tolerance: float,
    requests: Sequence[EditRequest] = REQUESTS[:3],
) -> Values:
    """The product on the requests at once against the oracle on each, relative to the size of delta."""
    searched = find_values(model, tokenizer, requests, layer, CONTEXTS, settings)
    for number, request in enumerate(requests):
        vector, initial, loss, steps, probability = literal(model, tokenizer, layer, settings, request)
        assert (vector - initial).norm() > 0
        assert (searched.vectors[:, number] - vector).norm() < tolerance * (vector - initial).norm()
        assert (searched.initial[:, number] - initial).norm() < tolerance * initial.norm()
        assert abs(float(searched.loss[number]) - loss) < tolerance * 10
        assert int(searched.steps[number]) == steps
        assert abs(float(searched.probability[number]) - probability) < tolerance * 10
    return searched
