"""Only what was asked the same, and judged by the same answers, is compared."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import Evaluation, ProbeAnswer, ReportError, pair_metrics
from corsa_plugins.bench.evaluation.same_questions import check_asked
from corsa_plugins.data.requests import EditRequest, Probe
from tests.support.verdicts import NEW, evaluation


def test_evaluations_of_other_questions_are_refused():
    with pytest.raises(ReportError, match="different prompts"):
        pair_metrics(evaluation([[NEW]]), evaluation([[NEW], [NEW]]))
    with pytest.raises(ReportError, match="asked differently"):
        pair_metrics(evaluation([[NEW]], settings={"max_new_tokens": 3}), evaluation([[NEW]]))


def test_evaluations_by_other_right_answers_are_refused():
    def judged_by(*aliases):
        facts = (ProbeAnswer(prompt="u", answer="Rome", output="Roma", aliases=aliases),)
        return Evaluation("", evaluation([[NEW]]).records, facts)

    facts = [Probe(prompt="u", answer="Rome", aliases=("Roma",))]
    request = EditRequest(prompt="p", target_new="Oslo", target_old="Rome", paraphrases=["p0"])
    check_asked(judged_by("Roma"), [request], facts, {})
    pair_metrics(judged_by("Roma"), judged_by("Roma"))
    with pytest.raises(ReportError, match="not the same"):
        check_asked(judged_by(), [request], facts, {})
    with pytest.raises(ReportError, match="different right answers"):
        pair_metrics(judged_by("Roma"), judged_by())


def test_what_a_saved_evaluation_can_be_compared_with():
    request = EditRequest(prompt="p", target_new="Oslo", target_old="Rome", paraphrases=["p0"])
    saved = evaluation([[NEW]], untouched=["x"], settings={"max_new_tokens": 3})
    facts = [Probe(prompt="u", answer="Rome")]
    check_asked(saved, [request], facts, {"max_new_tokens": 3, "fluency_tokens": None})
    with pytest.raises(ReportError, match="asked with"):
        check_asked(saved, [request], facts, {"max_new_tokens": 4})
    with pytest.raises(ReportError, match="1 untouched facts, and here are 0"):
        check_asked(saved, [request], [], {"max_new_tokens": 3})
    other = EditRequest(prompt="q", target_new="Oslo", target_old="Rome", paraphrases=["p0"])
    with pytest.raises(ReportError, match="other requests"):
        check_asked(saved, [other], facts, {"max_new_tokens": 3})
    with pytest.raises(ReportError, match="other requests"):
        check_asked(saved, [], facts, {"max_new_tokens": 3})
