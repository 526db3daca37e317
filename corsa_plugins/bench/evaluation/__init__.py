"""Measuring what an edit did: every number follows from records of what the model actually said.

* :mod:`~corsa_plugins.bench.evaluation.evaluate` asks a model; :mod:`~corsa_plugins.bench.evaluation.prompts` is what,
  :mod:`~corsa_plugins.bench.evaluation.judge` makes verdicts of it, :mod:`~corsa_plugins.bench.evaluation.records` are
  kept;
* :mod:`~corsa_plugins.bench.evaluation.metrics`: what is measured on them, a value each;
* :mod:`~corsa_plugins.bench.evaluation.changes` compares two evaluations,
  :mod:`~corsa_plugins.bench.evaluation.moments` two moments of one update;
* :mod:`~corsa_plugins.bench.evaluation.storage` and :mod:`~corsa_plugins.bench.evaluation.tables`: files and tables.
"""

from corsa_plugins.bench.evaluation.changes import Change, compare
from corsa_plugins.bench.evaluation.checkpoint import CheckpointError
from corsa_plugins.bench.evaluation.evaluate import evaluate
from corsa_plugins.bench.evaluation.evaluation import Evaluation
from corsa_plugins.bench.evaluation.intervals import Interval, bootstrap_mean
from corsa_plugins.bench.evaluation.metrics import (
    METRICS,
    Metric,
    exact_match_tokens,
    magnitude,
    margin,
    ngram_entropy,
)
from corsa_plugins.bench.evaluation.moments import UpdateSequence, pair_metrics, update_sequence
from corsa_plugins.bench.evaluation.records import Answer, ProbeAnswer, Record
from corsa_plugins.bench.evaluation.same_questions import ReportError
from corsa_plugins.bench.evaluation.storage import load_evaluation, save_evaluation
from corsa_plugins.bench.evaluation.tables import change_table, summary_table
from corsa_plugins.data.answers import contains_answer, contains_text, is_answer

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
    "contains_answer",
    "contains_text",
    "evaluate",
    "exact_match_tokens",
    "is_answer",
    "load_evaluation",
    "magnitude",
    "margin",
    "ngram_entropy",
    "pair_metrics",
    "save_evaluation",
    "summary_table",
    "update_sequence",
]
