"""R-SFT beside its oracle, from the same start."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.rsft import RSFTReport, RSFTSettings, rsft, trainable_parameters
from tests.oracles import rsft as oracle
from tests.support.training import REQUESTS, flat, pairs


def compare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: oracle.Settings, **more: Any
) -> tuple[float, RSFTReport, list[list[int]]]:
    """Train both from the same start: relative distance of the updates, our report, the oracle's steps."""
    twin = copy.deepcopy(model).double()
    ours = RSFTSettings(
        epochs=settings.epochs,
        steps=settings.steps,
        loss_threshold=settings.tau,
        learning_rate=settings.rate,
        optimizer=settings.optimizer,
        loss_reduction=settings.reduction,
        weight_decay=settings.decay,
        **({"layer": 1} | more),
    )
    theta = list(trainable_parameters(twin, ours).values())
    start = flat(theta)
    report = rsft(model, tokenizer, REQUESTS, ours)
    taken = oracle.train(twin, pairs(tokenizer), theta, settings)
    moved = flat(theta) - start
    assert moved.norm() > 0
    trained = flat(trainable_parameters(model, ours).values())
    return float((trained - flat(theta)).norm() / moved.norm()), report, taken


def steps_of(report: RSFTReport, epochs: int) -> list[list[int]]:
    """As the oracle counts them; epochs left out because nothing changed any more take no steps."""
    ran = [[sample.steps[epoch] for sample in report.samples] for epoch in range(report.epochs)]
    return ran + [[0] * len(report.samples)] * (epochs - report.epochs)


# Rates at which, on these models, some visits use up their steps and some stop early; the tests check that they do.
SGD = oracle.Settings(epochs=4, steps=6, tau=1.5, rate=0.1, optimizer="sgd")
ADAMW = oracle.Settings(epochs=4, steps=6, tau=1.5, rate=0.03, optimizer="adamw")
