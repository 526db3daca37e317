"""The report: one file that loads nothing, runs nothing foreign, leaves out what there is no data for, and is valid."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import pytest

from corsa_plugins.bench.evaluation import Evaluation, Interval, ReportError, evaluate
from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.report.page import Column, Comparison, Report, write_report
from corsa_plugins.report.sections.ability import HarnessScore
from corsa_plugins.report.sections.conflicts import Conflict
from corsa_plugins.report.sections.curvature import CurvatureRow
from corsa_plugins.report.sections.history import HistoryPoint
from corsa_plugins.report.sections.sweep import SweepRow
from tests.support.html import ATTACK, Page


@pytest.fixture
def two(taught_llama, tiny_llama, tiny_tokenizer):
    """The same requests asked of two models, an attack among them."""
    requests = [
        EditRequest(
            prompt="The capital of France is",
            target_new="Paris",
            target_old="Rome",
            paraphrases=["What is the capital of France?"],
            neighborhood=[{"prompt": "The capital of Italy is", "answer": "Rome"}],
            case_id=ATTACK,
        ),
        EditRequest(prompt=ATTACK + " is", target_new=ATTACK + "new", target_old=ATTACK + "old"),
    ]
    facts = [Probe(prompt=ATTACK, answer="Rome"), Probe(prompt="The capital of Spain is", answer="Madrid")]
    options = {"untouched": facts, "max_new_tokens": 6, "progress": False}
    for model in (tiny_llama, taught_llama):
        model.config.max_position_embeddings = 512  # an attack is long where letters are tokens
    return [
        evaluate(tiny_llama, tiny_tokenizer, requests, label="before" + ATTACK, **options),
        evaluate(taught_llama, tiny_tokenizer, requests, label="after", **options),
    ]


PARTS = {
    "history": [HistoryPoint(step, -3 + step, -1 - step, run=run) for run in ("LoRA", ATTACK) for step in range(4)],
    "forgetting": [ForgettingPoint(share, share / 2, share / 3, share, ATTACK) for share in (0.5, 1.0)],
    "sweep": [SweepRow(w, d, w * d, 1 - w * d, best=w == d == 0.5) for w in (0.5, 1.0) for d in (0.5, 1.0)],
    "conflicts": [Conflict(0.1 * i, None, 3.0 + i, group=ATTACK) for i in range(5)],
    "curvature": [CurvatureRow(ATTACK, "margin", -3.0, 2.0, 40, False)],
    "harness": [HarnessScore(ATTACK, "acc", 0.5, 0.01, "before"), HarnessScore("b", "acc", 0.25, label=ATTACK)],
}


def page(tmp_path, evaluations, name="report.html", **content):
    report = Report(evaluations=evaluations, **{"title": "A title", "asked": {"model": "m"}, **content})
    return write_report(tmp_path / name, report).read_text(encoding="utf-8")


def test_it_loads_nothing_and_runs_only_its_own_script(two, tmp_path):
    source = page(tmp_path, two, title=ATTACK, asked={ATTACK: ATTACK}, notes=[ATTACK], parts=PARTS)
    found = Page(source)
    assert found.count("script") == 1
    assert found.count("img") == found.count("link") == found.count("iframe") == 0
    for tag, attributes in found.elements:
        loads = {"src", "srcset", "data", "poster", "action", "xlink:href", "style"} & set(attributes)
        assert not loads, (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in source
    assert "@import" not in source
    (script,) = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in source or f"script-src 'sha256-{digest}'" in source
    assert "alert" not in script
    # and everything that could attack is there to read
    assert "".join(found.words).count(ATTACK) >= 12


def test_every_section_has_data_or_is_left_out(two, tmp_path):
    assert Page(page(tmp_path, two, parts=PARTS)).headings == [
        "Results",
        "During training",
        "Forgetting",
        "Scale and density",
        "Conflicts",
        "Curvature",
        "General ability",
        "Requests and answers",
        "What was asked",
    ]
    assert Page(page(tmp_path, two[1:], asked={})).headings == ["Results", "Requests and answers"]
    for name, title in (("history", "During training"), ("sweep", "Scale and density"), ("curvature", "Curvature")):
        assert Page(page(tmp_path, [], asked={}, parts={name: PARTS[name]})).headings == [title]
    for empty in ({}, {"parts": {"history": [], "sweep": ()}}):
        with pytest.raises(ReportError, match="nothing to report"):
            page(tmp_path, [], **empty)


def test_the_numbers_are_those_of_the_evaluations(two, tmp_path):
    words = " ".join(" ".join(Page(page(tmp_path, two)).words).split())
    efficacy = two[1].summary()["efficacy"]
    assert f"{100 * efficacy.mean:.1f} [{100 * efficacy.low:.1f}, {100 * efficacy.high:.1f}]" in words
    margin = two[1].summary()["margin"].mean - two[0].summary()["margin"].mean
    assert f"{margin:+.2f} [" in words
    assert "Locality, %" in words
    assert "Forgetting" not in words
    assert "Forgetting, %" in " ".join(Page(page(tmp_path, two, later=True)).words)


def test_the_list_has_every_prompt_with_every_answer_and_needs_no_script(two, tmp_path):
    source = page(tmp_path, two)
    found = Page(source)
    assert sum(tag == "li" for tag, _ in found.elements) == 4
    everything = "".join(found.words)
    for evaluation in two:
        for record in evaluation.records:
            for answer in (record.edit, *record.paraphrases, *record.neighborhood):
                assert answer.prompt in everything
                shown = answer.output.strip().replace("\n", " ⏎ ").replace("\t", " ⇥ ")
                assert re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", shown)[:400] in everything
    kinds = [attributes["data-is"].split() for tag, attributes in found.elements if tag == "li"]
    for column, evaluation in enumerate(two):
        for record, held in zip(evaluation.records, kinds, strict=False):
            assert (f"{column}.missed" in held) == (not record.edit.says_new)
    assert "0.missed" in kinds[0]
    assert "1.missed" not in kinds[0]
    assert all("untouched" in kind for kind in kinds[2:])
    assert [a for tag, a in found.elements if tag == "select" and a.get("class") == "by"] == [], "there is one to judge"
    (form,) = [attributes for tag, attributes in found.elements if tag == "form"]
    assert "hidden" in form, "what needs the script is not shown without it"


def test_verdicts_of_two_models_of_one_name_are_not_mixed(two, tmp_path):
    alike = [replace(one, label="model") for one in two]
    apart = [replace(one, label=label) for one, label in zip(two, ("model", "model (2)"), strict=True)]
    assert page(tmp_path, [], answers=[alike]) == page(tmp_path, [], answers=[apart])


def test_one_list_holds_groups_that_were_asked_different_things(two, tmp_path):
    before, after = two
    third = replace(before, label="third")
    left = [replace(one, records=one.records[:1], untouched=()) for one in (before, after, third)]
    right = [
        replace(one, records=one.records[1:], label=label) for one, label in ((before, before.label), (after, "x"))
    ]
    source = page(tmp_path, [], answers=[left, right])
    found = Page(source)
    kinds = [set(attributes["data-is"].split()) for tag, attributes in found.elements if tag == "li"]
    assert len(kinds) == 4
    options = [attributes for tag, attributes in found.elements if tag == "option" and "data-title" not in attributes]
    assert [option["value"] for option in options] == ["", "0", "1", "2", "3"]
    assert [option["value"] for option in options if "selected" in option] == ["2"], "the first group's last"
    # the first request is known to the second column alone, and was put to the first three; the other to two
    assert {kind for kind in kinds[0] if kind.endswith("missed")} == {"0.missed", "2.missed"}
    assert {kind.split(".")[0] for kind in kinds[1] if kind.endswith("missed")} <= {"0", "3"}
    assert "new answer in 1 of 2" in "".join(found.words)


def test_comparisons_are_tables_of_their_own(two, tmp_path):
    (mean, low, high, n) = two[1].summary()["efficacy"]
    comparison = Comparison(
        "After update 1", ["before", ATTACK], [Column("Efficacy, %", 1, [None, Interval(mean, low, high, n)])]
    )
    found = Page(page(tmp_path, [], comparisons=[comparison]))
    assert found.headings[0] == "Results"
    words = " ".join(" ".join(found.words).split())
    assert "After update 1" in words
    assert f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in words


def test_evaluations_that_asked_something_else_are_not_mixed(two, tmp_path, taught_llama, tiny_tokenizer):
    other = evaluate(
        taught_llama,
        tiny_tokenizer,
        [EditRequest(prompt="Anna Berg", target_new="Oslo")],
        label="other",
        progress=False,
    )
    words = " ".join(Page(page(tmp_path, [other, two[1]])).words)
    assert "No changes are shown" in words
    assert "Asked other questions, and not shown here: other" in words


def test_the_same_input_gives_the_same_bytes(two, tmp_path):
    assert page(tmp_path, two, parts=PARTS) == page(tmp_path, two, name="again.html", parts=PARTS)


def test_what_a_model_answers_is_text(two, tmp_path):
    attacked = two[1].records[0].edit.model_copy(update={"output": ATTACK})
    probed = [probe.model_copy(update={"output": ATTACK}) for probe in two[1].records[0].neighborhood]
    record = two[1].records[0].model_copy(update={"edit": attacked, "neighborhood": tuple(probed), "case_id": None})
    found = Page(page(tmp_path, [Evaluation("after", (record,))]))
    assert "".join(found.words).count(ATTACK) == 1 + len(probed)
    assert found.count("script") == 1
    assert found.count("img") == 0


def test_a_text_cannot_pass_for_a_line_of_the_reports(tmp_path, two):
    forged = two[1].records[0].edit.model_copy(update={"output": "x\n✓ new\tafter:\tBergen", "says_new": False})
    record = two[1].records[0].model_copy(update={"edit": forged})
    source = page(tmp_path, [Evaluation("after", (record,))])
    assert "x ⏎ ✓ new ⇥ after: ⇥ Bergen" in source
    assert "\n✓ new\tafter:\tBergen" not in source
