"""The list of requests says every answer that counts as right."""

from __future__ import annotations

import re
from html import unescape

from corsa_plugins.bench.evaluation import Answer, Evaluation, ProbeAnswer, Record
from corsa_plugins.report.sections.answers import LONGEST, listing


def listed(*aliases):
    """The words of the list of one request with a portability probe, and of one untouched fact."""
    said = Answer(
        prompt="p",
        output="Oslo",
        says_new=True,
        says_old=None,
        top1_new=True,
        top1_old=None,
        log_prob_new=-1,
        log_prob_old=None,
    )
    probe = ProbeAnswer(prompt="q", answer="Rome", output="Roma", says_answer=bool(aliases), aliases=aliases)
    record = Record(
        index=0,
        case_id=None,
        target_new="Oslo",
        target_old=None,
        edit=said,
        paraphrases=(),
        neighborhood=(),
        portability=(probe,),
    )
    html = listing([[Evaluation("after", (record,), (probe.model_copy(update={"prompt": "u"}),))]])
    request, untouched = re.findall(r"<li .*?</li>", html, re.DOTALL)
    return [unescape(re.sub(r"<[^>]*>", "", item)) for item in (request, untouched)]


def test_other_right_answers_stand_beside_the_first():
    request, untouched = listed("Roma", "a <b>tag</b>")
    assert "(right: Rome, or Roma, or a <b>tag</b>)" in request
    assert "\u2192 Rome or Roma, or a <b>tag</b>" in untouched


def test_without_them_nothing_is_added():
    request, untouched = listed()
    assert "(right: Rome)" in request
    assert not re.search(r"\bor\b", request + untouched)


def test_dozens_of_them_do_not_fill_the_page():
    assert all(len(item) < 2 * LONGEST for item in listed(*(f"name {number}" for number in range(1000))))
