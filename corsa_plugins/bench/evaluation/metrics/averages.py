"""Means over the answers of a record, of those that have a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from corsa_plugins.bench.evaluation.intervals import mean
from corsa_plugins.bench.evaluation.records import Answer, ProbeAnswer, Record

__all__ = ["average", "on_neighborhood", "on_paraphrases", "on_portability", "on_prompt"]

Value = float | bool | None


def average(values: Iterable[Value]) -> float | None:
    """Of the values there are; ``None`` of none."""
    return mean([float(value) for value in values if value is not None])


def on_prompt(value: Callable[[Answer], Value]) -> Callable[[Record], float | None]:
    """The value of the answer to the edit prompt."""
    return lambda record: average([value(record.edit)])


def on_paraphrases(value: Callable[[Answer], Value]) -> Callable[[Record], float | None]:
    """The mean over the paraphrases."""
    return lambda record: average(map(value, record.paraphrases))


def on_neighborhood(value: Callable[[ProbeAnswer], Value]) -> Callable[[Record], float | None]:
    """The mean over the neighborhood probes."""
    return lambda record: average(map(value, record.neighborhood))


def on_portability(value: Callable[[ProbeAnswer], Value]) -> Callable[[Record], float | None]:
    """The mean over the portability probes."""
    return lambda record: average(map(value, record.portability))
