"""Metrics of two moments, on records written by hand."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.evaluation import (
    Answer,
    Evaluation,
    ProbeAnswer,
    Record,
    ReportError,
    pair_metrics,
    update_sequence,
)
from corsa_plugins.bench.evaluation.moments import check_asked
from corsa_plugins.data.requests import EditRequest, Probe


def answer(prompt, new, old):
    return Answer(
        prompt=prompt, output="", says_new=new, says_old=old, top1_new=new, top1_old=old, log_prob_new=0, log_prob_old=0
    )


def probe(prompt, output):
    return ProbeAnswer(prompt=prompt, answer="Rome", output=output)


def evaluation(paraphrases, probes=(), label="model", settings=None, untouched=()):
    """One request for each list of (says_new, says_old); ``probes`` are outputs of the first one's."""
    records = tuple(
        Record(
            index=i,
            case_id=None,
            target_new="Oslo",
            target_old="Rome",
            edit=answer("p", *verdicts[0]),
            paraphrases=tuple(answer(f"p{n}", *v) for n, v in enumerate(verdicts)),
            neighborhood=tuple(probe(f"n{n}", output) for n, output in enumerate(probes if i == 0 else ())),
            portability=(),
        )
        for i, verdicts in enumerate(paraphrases)
    )
    return Evaluation(label, records, tuple(probe("u", output) for output in untouched), settings)


NEW, OLD, NEITHER, BOTH = (True, False), (False, True), (False, False), (True, True)


def test_locality_is_the_share_of_answers_that_stayed_right_or_wrong():
    before = evaluation([[OLD]], [" Rome. She is", "Paris", "Oslo"], untouched=["Rome", "Bern"])
    after = evaluation([[NEW]], ["rome. He was", "Oslo", "Oslo"], untouched=["Rome", "Rome"])
    found = pair_metrics(before, after)
    assert {name: interval.mean for name, interval in found.items()} == {
        "locality": pytest.approx(2 / 3),
        "untouched_locality": 0.5,
    }


def test_with_a_chat_template_the_whole_output_counts_for_locality():
    settings = {"chat_template": True}
    before = evaluation([[OLD]], ["Rome. She is", "Rome"], settings=settings)
    after = evaluation([[NEW]], ["Rome. He was", " rome "], settings=settings)
    assert pair_metrics(before, after)["locality"].mean == 0.5


def test_forgetting_and_activation_by_hand():
    first = evaluation([[NEW, NEW, OLD, NEITHER], [NEW, BOTH]])
    later = evaluation([[NEW, OLD, OLD, OLD], [NEITHER, BOTH]])
    found = pair_metrics(first, later, later=True)
    # generality 2/4 and 2/2 right after; 1/4 and 1/2 later
    assert found["forgetting"].mean == pytest.approx(((2 / 4 - 1 / 4) + (2 / 2 - 1 / 2)) / 2)
    assert found["forgetting_edit_prompt"].mean == 0.5
    # of four, the second and the fourth came back; "both" was there before
    assert found["old_activation"].mean == pytest.approx((2 / 4 + 0) / 2)
    assert "locality" not in found


def test_old_answers_later_are_those_that_stayed_and_those_that_came_back():
    first = evaluation([[OLD, NEW], [NEW, NEW]])
    later = evaluation([[OLD, OLD], [NEW, OLD]])
    retained = later.summary()["old_retention"].mean
    assert (
        retained
        == first.summary()["old_retention"].mean + pair_metrics(first, later, later=True)["old_activation"].mean
    )


def test_a_sequence_of_updates():
    one, two, three = evaluation([[NEW, NEW]]), evaluation([[NEW, OLD]]), evaluation([[NEW, NEW]])
    one_later, two_later = evaluation([[NEW, OLD]]), evaluation([[NEW, OLD]])
    for ends in ([one_later, two_later], [one_later, two_later, three]):
        found = update_sequence([one, two, three], ends)
        assert [interval.mean for interval in found.update_efficacy] == [1, 0.5, 1]
        assert [interval and interval.mean for interval in found.forgetting] == [0.5, 0, None]
        assert [interval and interval.mean for interval in found.old_activation] == [0.5, 0, None]
    with pytest.raises(ReportError, match="3 evaluations right after an update and 1 at the end"):
        update_sequence([one, two, three], [one_later])


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
