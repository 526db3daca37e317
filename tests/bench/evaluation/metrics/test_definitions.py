"""Every metric there is, on one case worked out by hand, and every definition with its source."""

from __future__ import annotations

import inspect
import math
import re

import pytest

from corsa_plugins.bench.evaluation import (
    METRICS,
    Answer,
    Evaluation,
    ProbeAnswer,
    Record,
    bootstrap_mean,
    metrics,
    pair_metrics,
    update_sequence,
)
from corsa_plugins.bench.evaluation.metrics import Metric, Moments, Of, select_metrics

SOURCE = re.compile(r"paper|et al\.|papers/|Efron")


def answer(prompt, says_new, says_old, p_new, p_old, top1_new=False, top1_old=False):
    return Answer(
        prompt=prompt,
        output="",
        says_new=says_new,
        says_old=says_old,
        top1_new=top1_new,
        top1_old=top1_old,
        log_prob_new=math.log(p_new),
        log_prob_old=None if p_old is None else math.log(p_old),
    )


def probe(prompt, says, top1, p=None, p_new=None, output=""):
    return ProbeAnswer(
        prompt=prompt,
        answer="Rome",
        output=output,
        says_answer=says,
        top1=top1,
        log_prob=None if p is None else math.log(p),
        log_prob_new=None if p_new is None else math.log(p_new),
    )


def record(**changed):
    return Record(
        **{
            "index": 0,
            "case_id": "by hand",
            "target_new": "Oslo",
            "target_old": "Bern",
            "edit": answer("e", True, False, 0.6, 0.2, top1_new=True),
            "paraphrases": (
                answer("p1", True, True, 0.5, 0.25, top1_new=True),
                answer("p2", False, True, 0.1, 0.4, top1_old=True),
                answer("p3", True, False, 0.3, 0.3),
                answer("p4", False, False, 0.2, 0.1),
            ),
            "neighborhood": (
                probe("n1", True, True, 0.5, 0.1),
                probe("n2", True, False, 0.1, 0.5),
                probe("n3", False, False, 0.2, 0.1),
                ProbeAnswer(prompt="n4", answer=None, output="x"),
            ),
            "portability": (probe("q1", True, False), probe("q2", False, False)),
            "continuation": "a b a b a c",
            **changed,
        }
    )


BY_HAND = {
    "efficacy": 1,
    "efficacy_top1": 1,
    "generality": 2 / 4,
    "generality_top1": 1 / 4,
    "old_on_prompt": 0,
    "old_retention": 2 / 4,
    "specificity": 2 / 3,
    "specificity_top1": 1 / 3,
    "portability": 1 / 2,
    "portability_top1": 0,
    "magnitude": 1,
    "magnitude_paraphrases": 2 / 4,  # equal probabilities are no success
    "magnitude_neighborhood": 2 / 3,
    "margin": math.log(3),
    "margin_paraphrases": (math.log(2) - math.log(4) + 0 + math.log(2)) / 4,
    "log_prob_new": math.log(0.6),
    "log_prob_old": math.log(0.2),
    # bi-grams ab ba ab ba ac, tri-grams aba bab aba bac
    "fluency": (2 * (2 / 5) * math.log2(5 / 2) + (1 / 5) * math.log2(5)) / 3
    + 2 * ((1 / 2) * math.log2(2) + 2 * (1 / 4) * math.log2(4)) / 3,
}


def names(of: Of, moments: Moments) -> list[str]:
    return [metric.name for metric in select_metrics(of, moments)]


OF_A_REQUEST = names(Of.REQUEST, Moments.ONE)


@pytest.mark.parametrize("name", OF_A_REQUEST)
def test_a_metric_of_a_request(name):
    assert METRICS[name].value(record()) == pytest.approx(BY_HAND[name])


@pytest.mark.parametrize("name", OF_A_REQUEST)
def test_without_anything_to_measure_there_is_no_value(name):
    bare = record(
        edit=answer("e", True, None, 0.6, None),
        paraphrases=(),
        neighborhood=(),
        portability=(),
        continuation=None,
        target_old=None,
    )
    expected = {"efficacy": 1, "efficacy_top1": 0, "log_prob_new": math.log(0.6)}.get(name)
    assert METRICS[name].value(bare) == (None if expected is None else pytest.approx(expected))


def test_a_metric_of_the_untouched_facts():
    facts = (probe("u1", True, False), probe("u2", True, True), probe("u3", False, False))
    summary = Evaluation("now", (), facts).summary()
    assert set(summary) == set(names(Of.FACT, Moments.ONE))
    assert (summary["untouched"].mean, summary["untouched_top1"].mean) == pytest.approx((2 / 3, 1 / 3))


def evaluation(says, outputs, untouched):
    """Verdicts (new, old) on the edit prompt and the paraphrases, and what was said to the neighbors."""
    first, *others = (answer(f"p{at}", bool(new), bool(old), 0.5, 0.5) for at, (new, old) in enumerate(says))
    neighbors = tuple(probe(f"n{at}", None, None, output=output) for at, output in enumerate(outputs))
    facts = tuple(probe(f"u{at}", None, None, output=output) for at, output in enumerate(untouched))
    return Evaluation("", (record(edit=first, paraphrases=tuple(others), neighborhood=neighbors),), facts)


def test_the_metrics_of_two_moments():
    then = evaluation([(1, 0), (1, 0), (1, 1), (0, 0), (1, 0)], ["Rome. It", "Bern", "Oslo"], ["Kyiv", "Riga"])
    now = evaluation([(0, 1), (1, 1), (1, 1), (0, 1), (0, 0)], [" rome", "Oslo", "Oslo"], ["kyiv.", "Oslo"])
    edit, later = pair_metrics(then, now), pair_metrics(then, now, later=True)
    assert list(edit) == names(Of.REQUEST, Moments.EDIT) + names(Of.FACT, Moments.EDIT)
    assert list(later) == names(Of.REQUEST, Moments.LATER)
    assert edit["locality"].mean == pytest.approx(2 / 3)
    assert edit["untouched_locality"].mean == 1 / 2
    assert later["forgetting"].mean == 3 / 4 - 2 / 4
    assert later["forgetting_edit_prompt"].mean == 1
    assert later["old_activation"].mean == 2 / 4  # the second paraphrase had its old answer all along
    sequence = update_sequence([then, now], [now])
    assert [interval.mean for interval in sequence.update_efficacy] == [3 / 4, 2 / 4]


def without(*fields):
    """The record of a request that has none of these."""
    bare = record()
    if "target_old" in fields:
        forgotten = {"says_old": None, "top1_old": None, "log_prob_old": None}
        paraphrases = tuple(answer.model_copy(update=forgotten) for answer in bare.paraphrases)
        changed = {"target_old": None, "edit": bare.edit.model_copy(update=forgotten), "paraphrases": paraphrases}
        bare = bare.model_copy(update=changed)
    empty = {"paraphrases": (), "neighborhood": (), "portability": (), "continuation": None}
    return bare.model_copy(update={name: value for name, value in empty.items() if name in fields})


def value_of(metric: Metric, answered: Record):
    return metric.value(answered) if metric.moments is Moments.ONE else metric.value(answered, answered, False)


@pytest.mark.parametrize("metric", [m for m in METRICS.values() if m.of is Of.REQUEST], ids=lambda metric: metric.name)
def test_a_metric_needs_what_it_says_and_nothing_else(metric):
    fields = {"target_old", "paraphrases", "neighborhood", "portability", "continuation"}
    assert metric.needs <= fields
    assert value_of(metric, without(*(fields - metric.needs))) is not None
    for field in metric.needs:
        assert value_of(metric, without(field)) is None


def test_every_definition_names_its_source():
    described = {metric.name: metric.source for metric in METRICS.values()}
    for name in ("exact_match_tokens", "magnitude", "margin", "ngram_entropy"):
        described[f"metrics.{name}"] = inspect.getdoc(getattr(metrics, name))
    described["bootstrap_mean"] = inspect.getdoc(bootstrap_mean)
    assert [name for name, text in described.items() if not SOURCE.search(text)] == []


def test_a_metric_of_two_moments_has_no_value_at_one():
    with pytest.raises(KeyError, match="forgetting is a metric of two moments"):
        Evaluation("now", (record(),)).values("forgetting")
