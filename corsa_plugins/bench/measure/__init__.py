"""A model measured by all that is asked of it, and compared with what it was before.

What ``corsa evaluate`` does, from Python::

    questions = Questions(read_requests("facts.jsonl"), read_probes("others.jsonl"))
    measurement = measure(Subject("M", adapter="runs/facts", baseline="M"), questions, folder="results")
    measurement.after.evaluation.summary(), measurement.before.evaluation.summary()

:func:`corsa_plugins.report.evaluation_page.save_measurement` writes it.
"""

from corsa_plugins.bench.measure.questions import BASELINE, HARNESS, UNFINISHED, Measured, Questions
from corsa_plugins.bench.measure.run import Measurement, measure
from corsa_plugins.bench.measure.subject import Subject

__all__ = ["BASELINE", "HARNESS", "UNFINISHED", "Measured", "Measurement", "Questions", "Subject", "measure"]
