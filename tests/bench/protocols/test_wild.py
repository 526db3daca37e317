"""The protocol ``wild``: what is asked when, what is kept, and that a stopped run goes on."""

from __future__ import annotations

import json

import pytest
import torch

from corsa_plugins.bench.evaluation import Interval
from corsa_plugins.bench.protocols import make_plan, run_methods
from corsa_plugins.bench.protocols.wild import Wild, standing_requests
from corsa_plugins.bench.wild import ask_wild, wild_questions
from corsa_plugins.bench.wild.survive import trials
from corsa_plugins.bench.wild.table import AFTER, WildFigures, wild_table
from corsa_plugins.errors import SettingError
from corsa_plugins.report import protocol_page
from corsa_plugins.report.sections.wild import WILD
from corsa_plugins.report.sources import read_sources
from tests.fixtures.protocols import FailsOnce
from tests.support.html import Page
from tests.support.small_plans import BORN, FRANCE, FRANCE_AGAIN, ITALY, UNTOUCHED

QUICK = {"progress": False, "batch_size": 8}


def wild_plan():
    return make_plan("wild", [[FRANCE, BORN]], untouched=UNTOUCHED)


def run(method, model, tokenizer, output, *, wild=None, plan=None):
    wild = wild or Wild(max_new_tokens=5, alone=1, survive=tuple(trials(["int8", "merge"], model, tokenizer)))
    (only,) = run_methods({"mine": method}, plan or wild_plan(), model, tokenizer, output, wild=wild, **QUICK)
    return only


def test_everything_is_asked_at_its_moment_and_kept(make, taught_llama, tiny_tokenizer, tmp_path):
    before = {name: value.clone() for name, value in taught_llama.state_dict().items()}
    questions = wild_questions([FRANCE, BORN])
    at_first = ask_wild(taught_llama, tiny_tokenizer, questions, max_new_tokens=5, batch_size=8)
    method = make("rsft")
    found = run(method, taught_llama, tiny_tokenizer, tmp_path / "out").wild
    assert all(torch.equal(value, before[name]) for name, value in taught_llama.state_dict().items())
    assert list(found.before) == at_first
    session = method.start(taught_llama, tiny_tokenizer, seed=0)
    (tmp_path / "a").mkdir()
    session.update([FRANCE, BORN], tmp_path / "a")
    assert list(found.after) == ask_wild(taught_llama, tiny_tokenizer, questions, max_new_tokens=5, batch_size=8)
    survived = {trial.name: trial for trial in trials(["int8"], taught_llama, tiny_tokenizer)}
    ((name, trial),) = survived.items()
    rounded = trial.change(taught_llama)
    assert list(found.survived[name]) == ask_wild(rounded, tiny_tokenizer, questions, max_new_tokens=5, batch_size=8)
    session.close()
    session = method.start(taught_llama, tiny_tokenizer, seed=0)
    (tmp_path / "b").mkdir()
    session.update([FRANCE], tmp_path / "b")
    single = wild_questions([FRANCE])
    assert list(found.alone) == ask_wild(taught_llama, tiny_tokenizer, single, max_new_tokens=5, batch_size=8)
    session.close()
    files = {path.name for path in (tmp_path / "out" / "mine").iterdir()}
    assert {"wild.json", "drift.json", "measures", "alone", "summary.json"} <= files
    summary = json.loads((tmp_path / "out" / "mine" / "summary.json").read_text())
    assert all("answers" not in each for ends in summary["measures_before_and_after"].values() for each in ends)


def test_a_stopped_run_goes_on_and_asks_nothing_twice(make, taught_llama, tiny_tokenizer, tmp_path, monkeypatch):
    whole = run(make("rsft"), taught_llama, tiny_tokenizer, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(FailsOnce(make("rsft"), 2), taught_llama, tiny_tokenizer, tmp_path / "stopped")  # in the single edit
    going_on = FailsOnce(make("rsft"), None)
    again = run(going_on, taught_llama, tiny_tokenizer, tmp_path / "stopped")
    assert [list(requests) for requests in going_on.made] == [[FRANCE]]
    assert again.wild == whole.wild
    files = [tmp_path / name / "mine" / "wild.json" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_only_what_still_holds_is_asked():
    plan = make_plan("wild", [[FRANCE, ITALY], [FRANCE_AGAIN]])
    assert standing_requests(plan) == [ITALY, FRANCE_AGAIN]
    assert [len(one.requests) for one in make_plan("wild", [[FRANCE, ITALY, BORN]], batches=2).sets] == [1, 2]


def test_what_is_shown_is_what_was_measured(make, taught_llama, tiny_tokenizer, tmp_path):
    only = run(make("rsft"), taught_llama, tiny_tokenizer, tmp_path)
    figures = only.wild.figures()
    rows = dict(figures.rows())
    words = [answer.words for answer in only.wild.after if answer.form == "prompt"]
    assert rows["after all edits", "the prompt", "as words"].mean == sum(words) / len(words)
    given = only.result.summary().at_the_end["efficacy_top1"]
    assert rows["after all edits", "the prompt", "its tokens given"] == given
    shown = {moment: {place[1:] for place in rows if place[0] == moment} for moment in only.wild.moments()}
    for name, answers in only.wild.survived.items():  # whatever is shown of the edited model is shown of what it became
        assert {("the prompt", "exactly"), ("yes or no, all", "as words")} <= shown[f"after {name}"]
        assert shown[f"after {name}"] | {("the prompt", "its tokens given")} >= shown["after all edits"]
        exact = [answer.exact for answer in answers if answer.form == "prompt"]
        assert rows[f"after {name}", "the prompt", "exactly"].mean == sum(exact) / len(exact)
    assert wild_table([figures]).row_count == len(rows)
    assert WildFigures.from_dict(json.loads(json.dumps(figures.as_dict()))) == figures
    for row in figures.apart:
        assert {"form", "prompt", "right", "output", "lenient", "strict"} == row.keys()


def test_the_page_shows_it_and_corsa_report_reads_it(make, taught_llama, tiny_tokenizer, tmp_path):
    only = run(make("rsft"), taught_llama, tiny_tokenizer, tmp_path)
    page = protocol_page.write_runs_page(tmp_path / "page.html", [only], asked={}).read_text(encoding="utf-8")
    Page(page)  # every element is closed
    for shown in ("In the wild", "each edit alone".capitalize(), "After rounding to 8 bits", "Drift of hidden states"):
        assert shown in page
    sources = read_sources([f"mine={tmp_path / 'mine' / 'wild.json'}", str(tmp_path / "mine" / "drift.json")])
    assert sources.parts["wild"][0].moments == only.wild.figures().moments
    assert sources.parts["drift"][0].measured == only.drift


def test_of_how_many_requests_a_figure_is_stands_beside_it_where_it_hangs_on_the_method():
    some, all_of_them = Interval(0.5, 0.0, 1.0, 2), Interval(0.5, 0.0, 1.0, 8)
    figures = WildFigures("mine", {AFTER: {"prompt": {"words": all_of_them}, "negated": {"words": some}}}, {})
    table = wild_table([figures])
    assert list(table.columns[-1].cells) == ["50.0", "50.0 of 2"]
    assert "50.0 of 2<small>" in WILD.render([figures])


@pytest.mark.parametrize("name", ["max_new_tokens", "alone"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(SettingError, match=name):
        Wild(**{name: -1})
