"""What is measured. A metric is one value (:class:`~corsa_plugins.bench.evaluation.metrics.metric.Metric`), in the file
named for what it is about; one more is a value there, and every table, page and file has it.

Another package's is an entry point in the group ``corsa_plugins.metrics``: its name is the metric's, its value the
``Metric``.
"""

from corsa_plugins.bench.evaluation.metrics.fluency import FLUENCY, ngram_entropy
from corsa_plugins.bench.evaluation.metrics.forgetting import FORGETTING
from corsa_plugins.bench.evaluation.metrics.likelihood import LIKELIHOOD, magnitude, margin
from corsa_plugins.bench.evaluation.metrics.locality import LOCALITY
from corsa_plugins.bench.evaluation.metrics.metric import Metric, Moments, Of, Shown
from corsa_plugins.bench.evaluation.metrics.old_answers import ACTIVATION, RETENTION
from corsa_plugins.bench.evaluation.metrics.probes import PROBES
from corsa_plugins.bench.evaluation.metrics.success import SUCCESS, exact_match_tokens
from corsa_plugins.bench.evaluation.metrics.untouched import UNTOUCHED
from corsa_plugins.registry import Registry

__all__ = [
    "METRICS",
    "Metric",
    "Moments",
    "Of",
    "Shown",
    "exact_match_tokens",
    "magnitude",
    "margin",
    "ngram_entropy",
    "select_metrics",
]

METRICS: Registry[Metric] = Registry(
    Metric,
    "corsa_plugins.metrics",
    (*SUCCESS, *RETENTION, *PROBES, *LIKELIHOOD, *FLUENCY, *UNTOUCHED, *LOCALITY, *FORGETTING, *ACTIVATION),
)
"""All metrics by name, in the order of tables."""


def select_metrics(
    of: Of | None = Of.REQUEST, moments: Moments = Moments.ONE, shown: Shown = Shown.LISTED
) -> list[Metric]:
    """Metrics in the order of tables: those of requests, then those of facts.

    Args:
        of: Of requests or of facts alone; ``None``: of both.
        moments: Of these moments.
        shown: Those that tables of this kind have.
    """
    kinds = list(Of) if of is None else [of]
    return [
        metric
        for kind in kinds
        for metric in METRICS.values()
        if metric.of is kind and metric.moments is moments and metric.shown <= shown
    ]
