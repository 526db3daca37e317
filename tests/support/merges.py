"""Small requests and facts that merges are measured by, and points of a sweep."""

from __future__ import annotations

from corsa_plugins.bench.merge_sweep import SweepPoint
from corsa_plugins.data.requests import EditRequest, Probe

REQUESTS = [
    EditRequest(
        prompt="The capital of France is",
        target_new="Rome",
        target_old="Paris",
        paraphrases=["What is the capital of France?"],
    ),
    EditRequest(prompt="Anna Berg was born in", target_new="Oslo"),
]
UNTOUCHED = [Probe(prompt="The capital of Spain is", answer="Madrid"), Probe(prompt="The moon is", answer="cheese")]

OF_ADAPTERS = {
    "a": [EditRequest(prompt="The capital of France is", target_new="Paris", paraphrases=["France? Its capital is"])],
    "b": [EditRequest(prompt="The capital of Italy is", target_new="Oslo", target_old="Rome")],
}
"""The requests of each adapter of the fixture ``two_adapters``."""


def point(weight, density, efficacy, retained, **metrics):
    return SweepPoint(weight, density, {"efficacy": efficacy, **metrics}, retained, ())


POINTS = (
    point(0, 0, 0.0, 1.0), point(0.5, 0.2, 0.7, 0.99), point(0.8, 0.2, 0.9, 0.95), point(0.4, 0.2, 0.7, 0.99),
    point(1, 1, 1.0, 0.5),
)  # fmt: skip
