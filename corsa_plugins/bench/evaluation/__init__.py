"""Measuring what an edit did: every number follows from records of what the model actually said."""

from corsa_plugins.bench.evaluation.checkpoint import CheckpointError
from corsa_plugins.bench.evaluation.evaluate import evaluate
from corsa_plugins.bench.evaluation.metrics import (
    Interval,
    bootstrap_mean,
    exact_match_tokens,
    magnitude,
    margin,
    ngram_entropy,
)
from corsa_plugins.bench.evaluation.moments import UpdateSequence, pair_metrics, update_sequence
from corsa_plugins.bench.evaluation.records import METRICS, Answer, Evaluation, Metric, ProbeAnswer, Record
from corsa_plugins.bench.evaluation.tables import (
    Change,
    ReportError,
    change_table,
    compare,
    load_evaluation,
    save_evaluation,
    summary_table,
)
from corsa_plugins.data.answers import contains_alias, contains_answer

__all__ = [
    "METRICS",
    "Answer",
    "Change",
    "CheckpointError",
    "Evaluation",
    "Interval",
    "Metric",
    "ProbeAnswer",
    "Record",
    "ReportError",
    "UpdateSequence",
    "bootstrap_mean",
    "change_table",
    "compare",
    "contains_alias",
    "contains_answer",
    "evaluate",
    "exact_match_tokens",
    "load_evaluation",
    "magnitude",
    "margin",
    "ngram_entropy",
    "pair_metrics",
    "save_evaluation",
    "summary_table",
    "update_sequence",
]
