"""Measuring what an edit did: every number follows from records of what the model actually said."""

from corsa_plugins.evaluation.evaluate import METRICS, Answer, Evaluation, Metric, ProbeAnswer, Record, evaluate
from corsa_plugins.evaluation.metrics import (
    Interval,
    bootstrap_mean,
    contains_answer,
    exact_match_tokens,
    magnitude,
    margin,
)
from corsa_plugins.evaluation.report import (
    Change,
    ReportError,
    change_table,
    compare,
    load_evaluation,
    save_evaluation,
    summary_table,
)

__all__ = [
    "METRICS",
    "Answer",
    "Change",
    "Evaluation",
    "Interval",
    "Metric",
    "ProbeAnswer",
    "Record",
    "ReportError",
    "bootstrap_mean",
    "change_table",
    "compare",
    "contains_answer",
    "evaluate",
    "exact_match_tokens",
    "load_evaluation",
    "magnitude",
    "margin",
    "save_evaluation",
    "summary_table",
]
