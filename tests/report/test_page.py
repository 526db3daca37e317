"""The report: one file that loads nothing, runs nothing foreign, leaves out what there is no data for, and is valid."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.evaluation import Evaluation, Interval, ReportError, evaluate
from corsa_plugins.bench.protocols.shares import ForgettingPoint
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.report.listing import text
from corsa_plugins.report.page import (
    Comparison,
    Conflict,
    CurvatureRow,
    HarnessScore,
    HistoryPoint,
    SweepRow,
    history_points,
    write_report,
)
from corsa_plugins.report.svg import Series, histogram, line_chart, ticks

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&--><svg onload=alert(1)>"
VOID = {"meta", "input", "path", "circle", "img", "br"}


class Page(HTMLParser):
    """Collects what a page holds, and checks that every element is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.words, self.headings = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


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
    return [
        evaluate(tiny_llama, tiny_tokenizer, requests, label="before" + ATTACK, **options),
        evaluate(taught_llama, tiny_tokenizer, requests, label="after", **options),
    ]


FIGURES = {
    "history": [HistoryPoint(step, -3 + step, -1 - step, run=run) for run in ("LoRA", ATTACK) for step in range(4)],
    "forgetting": [ForgettingPoint(share, share / 2, share / 3, share, ATTACK) for share in (0.5, 1.0)],
    "sweep": [SweepRow(w, d, w * d, 1 - w * d, best=w == d == 0.5) for w in (0.5, 1.0) for d in (0.5, 1.0)],
    "conflicts": [Conflict(0.1 * i, None, 3.0 + i, group=ATTACK) for i in range(5)],
    "curvature": [CurvatureRow(ATTACK, "margin", -3.0, 2.0, 40, False)],
    "harness": [HarnessScore(ATTACK, "acc", 0.5, 0.01, "before"), HarnessScore("b", "acc", 0.25, label=ATTACK)],
}


def page(tmp_path, evaluations, name="report.html", **parts):
    path = write_report(tmp_path / name, evaluations, **{"title": "A title", "asked": {"model": "m"}, **parts})
    return path.read_text(encoding="utf-8")


def test_it_loads_nothing_and_runs_only_its_own_script(two, tmp_path):
    source = page(tmp_path, two, title=ATTACK, asked={ATTACK: ATTACK}, notes=[ATTACK], **FIGURES)
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
    assert Page(page(tmp_path, two, **FIGURES)).headings == [
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
        assert Page(page(tmp_path, [], asked={}, **{name: FIGURES[name]})).headings == [title]
    for empty in ({}, {"history": [], "sweep": ()}):
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
        "After update 1", ["before", ATTACK], [("Efficacy, %", 1, [None, Interval(mean, low, high, n)])]
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
    assert page(tmp_path, two, **FIGURES) == page(tmp_path, two, name="again.html", **FIGURES)


def test_a_text_cannot_pass_for_a_line_of_the_reports(tmp_path, two):
    forged = two[1].records[0].edit.model_copy(update={"output": "x\n✓ new\tafter:\tBergen", "says_new": False})
    record = two[1].records[0].model_copy(update={"edit": forged})
    source = page(tmp_path, [Evaluation("after", (record,))])
    assert "x ⏎ ✓ new ⇥ after: ⇥ Bergen" in source
    assert "\n✓ new\tafter:\tBergen" not in source


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_text_in_the_page(value):
    written = text(value)
    written.encode("utf-8")
    assert not set("<>\"'") & set(written)
    found = Page(f"<p>{written}</p>")
    assert found.elements == [("p", {})]


def test_points_of_a_trainers_log():
    log = [
        {"step": 10, "loss": 1.0, "logps/new": -3.0, "logps/old": -5.0, "margin": 2.5},
        {"step": 20, "logps/new": -1.0},
        {"step": 20, "train_runtime": 3.0},
    ]
    assert history_points(log, "CoRSA") == [
        HistoryPoint(10, -3.0, -5.0, 2.5, "CoRSA"),
        HistoryPoint(20, -1.0, None, None, "CoRSA"),
    ]


class TestCharts:
    def test_numbers_that_are_not_finite_are_left_out(self):
        points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
        chart = line_chart([Series("a", points)], title="t", x_label="x", y_label="y")
        assert chart.count('class="mark k0"') == 3  # two points and the one at the label
        assert "nan" not in chart
        assert "inf" not in chart
        assert line_chart([Series("a", points[1:3])], title="t", x_label="x", y_label="y") == ""
        assert histogram([("a", [math.nan])], title="t", x_label="x") == ""
        assert histogram([], title="t", x_label="x") == ""

    @pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0], [1e-12, 1e12], [-3.0, 4.0]])
    def test_any_spread_of_values_can_be_drawn(self, values):
        chart = line_chart([Series("a", list(enumerate(values)))], title="t", x_label="x", y_label="y")
        Page(chart)
        heights = [float(y) for y in re.findall(r'class="mark k0" d="M[-\d.]+ ([-\d.]+)', chart)]
        assert all(0 <= height <= 280 for height in heights)
        Page(histogram([("", values)], title="t", x_label="x"))

    def test_a_higher_value_is_higher_and_a_later_one_further_right(self):
        chart = line_chart([Series("a", [(0, 1), (1, 3), (2, 2)])], title="t", x_label="x", y_label="y")
        (path,) = re.findall(r'class="line k0" d="M([^"]+)"', chart)
        (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, pair.split())) for pair in path.split("L")]
        assert x0 < x1 < x2
        assert y1 < y2 < y0

    def test_a_histogram_has_all_values(self):
        chart = histogram([("", [0.0, 0.1, 0.1, 1.0])], title="t", x_label="x", bins=4)
        (path,) = re.findall(r'class="bars k0" d="M([^"]+)Z?"', chart)
        heights = [float(pair.split()[1]) for pair in path.split("L")]
        base = heights[0]
        tallest = base - min(heights)
        bars = [(base - height) / tallest for height in heights[1:-1:2]]
        assert bars == pytest.approx([1, 0, 0, 1 / 3], abs=0.02)

    def test_series_are_told_apart_without_colour(self):
        lines = [Series(f"s{i}", [(0, i), (1, i)]) for i in range(6)]
        chart = line_chart(lines, title="t", x_label="x", y_label="y")
        shapes = {
            re.sub(r"[-\d. ]+", " ", d) + str(d.count("L")) for d in re.findall(r'class="mark k\d" d="([^"]+)"', chart)
        }
        kinds = set(re.findall(r'class="line (k\d)"', chart))
        assert len(kinds) == 6
        assert len(shapes) >= 3
        for i in range(6):
            assert f">s{i}<" in chart

    @settings(max_examples=50, deadline=None)
    @given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e6))
    def test_ticks_cover_the_range_with_few_even_steps(self, low, width):
        found = ticks(low, low + width)
        assert 2 <= len(found) <= 9
        slack = 1e-6 * (found[1] - found[0]) + 1e-9 * abs(low)
        assert found[0] <= low + slack
        assert found[-1] >= low + width - slack
        steps = [b - a for a, b in itertools.pairwise(found)]
        assert steps == pytest.approx([steps[0]] * len(steps))
