"""Settings chosen by edits on trial: on the testbed, which knows nothing of the world, and on a model that does."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from dataclasses import replace

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, collect_statistics
from corsa_plugins.alphaedit.auto import Choice, choose_settings, settings_for
from corsa_plugins.alphaedit.auto.choose import _of_values, start_settings
from corsa_plugins.alphaedit.auto.facts import TrialFacts, known_facts, own_facts
from corsa_plugins.alphaedit.auto.kept import KEPT, keep_choice, kept_choice
from corsa_plugins.alphaedit.auto.trials import Trial, Trials
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.tokenization import join
from corsa_plugins.testbed import load_testbed
from tests.conftest import llama, teach
from tests.fixtures.likeness import COLOURS, TOWNS

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid", "Russia": "Moscow", "Greece": "Athens",
    "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Poland": "Warsaw", "Norway": "Oslo", "Ireland": "Dublin",
}  # fmt: skip
LANGUAGES = {
    "Italy": "Italian",
    "Germany": "German",
    "Portugal": "Portuguese",
    "Sweden": "Swedish",
    "Mexico": "Spanish",
}


@pytest.fixture(scope="module")
def rounds():
    return load_testbed().world.edit_rounds(n_rounds=2, size=20, seed=3, untouched=0).rounds


def test_a_choice_leaves_the_model_alone_and_edits_what_it_did_not_see(testbed_bench, rounds) -> None:
    bench, told = testbed_bench, []
    before = bench.weights()
    choice = choose_settings(bench.model, bench.tokenizer, bench.statistics, rounds[0], report=told.append)
    assert bench.holds(before)
    assert tuple(told) == choice.trials
    # One place, an earlier end, steps halved twice, two other null spaces, three other ridges; and for AlphaEdit.
    assert [trial.what.startswith("AlphaEdit, ") for trial in told] == [False] * 9 + [True] * 6
    plain = choice.alphaedit().settings
    assert plain == replace(choice.settings, null_space=plain.null_space, ridge=plain.ridge).alphaedit()
    assert "10 of the requests" in choice.reason
    assert f"{len(told)} trial edits" in choice.reason
    best = max(told[:9], key=lambda trial: trial.score)
    assert best.efficacy > 0.9
    assert f"new answers said {100 * best.efficacy:.0f} %, reworded {100 * best.generality:.0f} %" in choice.reason
    assert best != told[0], "the first is the best: this tests nothing of what follows"
    assert (
        f"values in {choice.settings.values.steps} steps to a loss of {choice.settings.values.stop_loss:g}"
        in choice.reason
    )
    report = AlphaEditor(bench.model, bench.tokenizer, bench.statistics, choice.settings).edit(rounds[1], answers=False)
    assert sum(request.edited for request in report.requests) >= 16


def test_facts_that_the_model_knows_come_first_and_none_of_the_users(tiny_tokenizer) -> None:
    rows = [join(tiny_tokenizer, f"The capital of {name} is", f"{answer}.") for name, answer in CAPITALS.items()]
    rows += [join(tiny_tokenizer, f"In {name}, people speak", f"{answer}.") for name, answer in LANGUAGES.items()]
    model = teach(llama(len(tiny_tokenizer), seed=1), tiny_tokenizer, rows)
    facts = known_facts(model, tiny_tokenizer, ["france"])
    assert facts is not None
    assert len(facts.edits) == 8
    known = CAPITALS | LANGUAGES
    for request in facts.edits:
        assert known[request.subject] == request.target_old != request.target_new
        assert request.target_new in (CAPITALS if request.subject in CAPITALS else LANGUAGES).values()
        assert len(request.paraphrases) == 2
        assert all(request.subject in prompt for prompt in request.paraphrases)
    subjects = {request.subject for request in facts.edits}
    assert "France" not in subjects
    watched = {prompt for prompt, _ in facts.watched}
    assert len(watched) == 8
    assert not any(subject in prompt for subject in (*subjects, "France") for prompt in watched)
    assert known_facts(model, tiny_tokenizer, list(CAPITALS)) is None
    assert known_facts(llama(len(tiny_tokenizer)), tiny_tokenizer) is None


def test_own_facts_take_one_half_and_watch_the_other(testbed_bench, rounds) -> None:
    facts = own_facts(testbed_bench.model, testbed_bench.tokenizer, rounds[0], ["{}", "So. {}"])
    assert facts is not None
    edited, by_prompt = {request.prompt for request in facts.edits}, {each.prompt: each for each in rounds[0]}
    assert len(edited) == 10
    assert not edited & {prompt for prompt, _ in facts.watched}
    for request in facts.edits:
        assert request.target_new != by_prompt[request.prompt].target_new or len({e.target_new for e in rounds[0]}) < 20
        assert request.paraphrases == (f"So. {request.prompt}",)
    for prompt, answer in facts.watched:
        assert answer.strip()
        assert prompt in by_prompt
    assert own_facts(testbed_bench.model, testbed_bench.tokenizer, rounds[0][:15], ["{}"]) is None
    more = own_facts(testbed_bench.model, testbed_bench.tokenizer, [*rounds[0], *rounds[1]], ["{}"])
    assert more is not None
    assert len(more.edits) == 20


def test_where_nothing_can_be_tried_it_says_so(llama_bench, caplog) -> None:
    caplog.set_level(logging.WARNING)
    choice = choose_settings(llama_bench.model, llama_bench.tokenizer, llama_bench.statistics, layers=(1,))
    assert choice.settings == start_settings((1,))
    assert not choice.trials
    assert "nothing could be tried" in choice.reason
    assert "untried on this model" in caplog.text


def test_a_score_weighs_what_is_lost_more_than_what_is_won() -> None:
    spoils, spares = Trial("", 1.0, 0.6, 0.8, 1.0), Trial("", 0.95, 0.5, 0.95, 1.0)
    assert spares.score > spoils.score


def test_what_doubles_the_work_has_to_be_worth_it(testbed_bench, rounds, monkeypatch) -> None:
    """Every change is a little better than the one before, but smaller steps are not taken for that."""
    made = itertools.count()

    def tried(trials: Trials, settings: AlphaEditSettings, what: str) -> Trial:
        trials.made.append(Trial(what, 0.5, 0.5, 0.5 + 0.005 * next(made), 1.0))
        return trials.made[-1]

    monkeypatch.setattr(Trials, "try_out", tried)
    choice = choose_settings(testbed_bench.model, testbed_bench.tokenizer, testbed_bench.statistics, rounds[0])
    assert [trial.what for trial in choice.trials if "steps" in trial.what] == ["layers 0, values in steps of 1/2"]
    start = start_settings((0,))
    chosen = replace(start.values, stop_loss=0.1)
    assert choice.settings.values == chosen
    assert choice.settings.ridge == 1.0


def test_steps_are_halved_down_to_a_twentieth() -> None:
    changes = [change.make for change in _of_values() if "steps" in change.what]
    settings = start_settings((0,))
    for change in changes:
        settings = change(settings)
    assert (settings.values.steps, settings.values.lr) == (100, 0.05)
    assert changes[0](settings) == settings


def test_an_answer_that_is_sure_is_said_no_more_than_one_that_is_likely(testbed_bench, rounds, monkeypatch) -> None:
    facts = own_facts(testbed_bench.model, testbed_bench.tokenizer, rounds[0], ["{}", "So. {}"])
    trials = Trials(testbed_bench.model, testbed_bench.tokenizer, testbed_bench.statistics, facts)
    asked = iter([[0.5], [0.8], [0.2, 1.0], [0.25]])  # watched, new answers, reworded, watched
    monkeypatch.setattr(Trials, "_probabilities", lambda *_: next(asked))
    trial = trials.try_out(start_settings((0,)), "one")
    assert (trial.efficacy, trial.generality, trial.kept) == (1.0, pytest.approx(0.625), 0.5)


def test_a_trial_measures_an_edit_and_takes_it_back(testbed_bench, rounds) -> None:
    bench = testbed_bench
    facts = own_facts(bench.model, bench.tokenizer, rounds[0], ["{}", "So. {}"])
    trials = Trials(bench.model, bench.tokenizer, bench.statistics, facts)
    settings = replace(start_settings((0,)), null_space=bench.settings.null_space, ridge=0.05)
    before = bench.weights()
    strong, weak = trials.try_out(settings, "strong"), trials.try_out(replace(settings, ridge=1e4), "weak")
    assert bench.holds(before)
    assert strong.efficacy > 0.8 > 0.3 > weak.efficacy
    assert weak.kept > 0.99
    assert trials.made == [strong, weak]
    assert trials.best([(replace(settings, ridge=1e4), "weak"), (settings, "strong")])[1].what == "strong"


def test_what_is_looked_for_once_serves_all_trials(lister) -> None:
    """Values by layer and settings, neighbours by settings; a trial with them is the trial without, bit for bit."""
    model, tokenizer = lister
    edits = tuple(
        EditRequest(prompt=f"The land of {town} is", target_new=colour, subject=town, paraphrases=(f"{town} is",))
        for town, colour in zip(TOWNS, COLOURS, strict=False)
        if town not in ("Bern", "Riga")
    )
    facts = TrialFacts(edits, (("The land of Bern is", "red"),), "towns")
    statistics = collect_statistics(model, tokenizer, [", ".join(COLOURS + TOWNS)] * 8, [0], n_tokens=64)
    settings = start_settings((0,))
    settings = replace(settings, smoothing=None, n_contexts=1, neighbours=replace(settings.neighbours, per_form=2))
    editor = AlphaEditor(model, tokenizer, statistics, settings)
    values, neighbours = editor.values(edits), editor.neighbours(edits)
    assert {each.subject for each in neighbours} == {"Bern", "Riga"}

    def weight() -> torch.Tensor:
        return model.model.layers[0].mlp.down_proj.weight.detach().clone()

    before = weight()
    with editor.on_trial(edits, values):
        plain = weight()
    with editor.on_trial(edits, values, neighbours):
        assert torch.equal(weight(), plain)
    with editor.on_trial(edits, values, ()):
        assert not torch.equal(weight(), plain), "the neighbours make no difference: this tests nothing"
    assert torch.equal(weight(), before)
    trials, generate, generated = Trials(model, tokenizer, statistics, facts), model.generate, []
    model.generate = lambda *args, **kwargs: generated.append(1) or generate(*args, **kwargs)
    try:
        trials.try_out(settings, "one")
        looked = len(generated)
        trials.try_out(replace(settings, ridge=0.3), "two")
    finally:
        del model.generate
    assert looked == len(generated) > 0


class TestKept:
    """In the folder of the statistics, for the model and layers they are of."""

    @pytest.fixture
    def folder(self, tmp_path, llama_bench):
        llama_bench.statistics.save(tmp_path / "stats")
        return tmp_path / "stats"

    @pytest.fixture
    def choice(self):
        start = start_settings((0, 1))
        return Choice(start, "because", (Trial("x", 1, 1, 1, 1),), replace(start.alphaedit(), ridge=0.3))

    def test_it_comes_back_and_nothing_is_tried_again(self, folder, choice, llama_bench, monkeypatch) -> None:
        statistics = KeyStatistics.load(folder)
        assert kept_choice(statistics, (), None) is None
        keep_choice(choice, statistics, (), None)
        assert kept_choice(statistics, (), None) == choice
        assert kept_choice(statistics, (1,), None) is None
        assert kept_choice(statistics, (), True) is None
        keep_choice(choice, statistics, (), True)
        assert kept_choice(statistics, (), None) == kept_choice(statistics, (), True) == choice
        monkeypatch.setattr("corsa_plugins.alphaedit.auto.choose_settings", None)  # a choice would fail
        again = KeyStatistics.load(folder)
        assert settings_for(llama_bench.model, llama_bench.tokenizer, again) == choice
        assert torch.equal(again.moment(0), statistics.moment(0))  # the manifest minds no file of other names

    def test_two_at_once_choose_once(self, folder, choice, llama_bench, monkeypatch) -> None:
        chosen, begun, at_the_same_time = [], threading.Event(), []

        def choose(*args, **kwargs):
            begun.set()
            at_the_same_time.append(second.is_alive() and not found)
            time.sleep(0.3)  # the other one asks meanwhile
            chosen.append(1)
            return choice

        def other() -> None:
            begun.wait()
            found.append(settings_for(llama_bench.model, llama_bench.tokenizer, KeyStatistics.load(folder)))

        found, second = [], threading.Thread(target=other)
        monkeypatch.setattr("corsa_plugins.alphaedit.auto.choose_settings", choose)
        second.start()
        assert settings_for(llama_bench.model, llama_bench.tokenizer, KeyStatistics.load(folder)) == choice
        second.join()
        assert found == [choice]
        assert at_the_same_time == [True]
        assert chosen == [1]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9, "of": "", "choices": {}}', "\x00"])
    def test_what_cannot_be_read_or_is_of_another_model_counts_as_none(self, folder, choice, text) -> None:
        statistics = KeyStatistics.load(folder)
        (folder / KEPT).write_text(text)
        assert kept_choice(statistics, (), None) is None
        keep_choice(choice, statistics, (), None)
        content = json.loads((folder / KEPT).read_text())
        (folder / KEPT).write_text(json.dumps({**content, "of": "another"}))
        assert kept_choice(statistics, (), None) is None

    def test_statistics_of_no_folder_keep_nothing(self, llama_bench, choice, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        keep_choice(choice, llama_bench.statistics, (), None)
        assert not list(tmp_path.iterdir())
