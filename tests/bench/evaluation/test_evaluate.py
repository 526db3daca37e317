"""An evaluation says what the model said: known models get known verdicts, and all numbers follow from records."""

from __future__ import annotations

import json
import math

import pytest
import torch

from corsa_plugins.bench.evaluation import (
    METRICS,
    ReportError,
    change_table,
    compare,
    evaluate,
    load_evaluation,
    ngram_entropy,
    save_evaluation,
    summary_table,
)
from corsa_plugins.bench.evaluation.evaluate import longest_target
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import score_targets

# What the taught model answers (see `facts`): right for France and Italy, so that "new" is what it already knows here.
KNOWN = EditRequest(
    prompt="The capital of France is",
    target_new="Paris",
    target_old="Rome",
    paraphrases=["What is the capital of France?"],
    neighborhood=[{"prompt": "The capital of Italy is", "answer": "Rome"}, "The capital of Spain is"],
    portability=[{"prompt": "Where was Anna Berg born?", "answer": "Madrid"}],
    case_id="france",
)
UNKNOWN = EditRequest(
    prompt="The capital of Italy is",
    target_new="Oslo",
    target_old="Rome",
    paraphrases=["Which city is the capital of Italy?", "What is the capital of France?"],
)
BARE = EditRequest(prompt="Anna Berg was born in", target_new="Oslo")
REQUESTS = [KNOWN, UNKNOWN, BARE]
UNTOUCHED = [
    Probe(prompt="What does Anna Berg play?", answer="the violin"),
    EditRequest(prompt="The capital of Spain is", target_new="Lisbon"),
    Probe(prompt="Anna Berg"),
]


def run(model, tokenizer, requests=REQUESTS, untouched=UNTOUCHED, **options):
    return evaluate(model, tokenizer, requests, untouched=untouched, progress=False, **options)


def test_a_model_that_is_known_gets_the_verdicts_it_deserves(taught_llama, tiny_tokenizer):
    result = run(taught_llama, tiny_tokenizer, label="taught")
    expected = {
        "efficacy": [1, 0, 1],
        "efficacy_top1": [1, 0, 1],
        "generality": [1, 0, None],
        "generality_top1": [1, 0, None],
        "old_on_prompt": [0, 1, None],
        "old_retention": [0, 0.5, None],
        "specificity": [1, None, None],
        "specificity_top1": [1, None, None],
        "portability": [0, None, None],
        "portability_top1": [0, None, None],
        "magnitude_neighborhood": [1, None, None],
        "magnitude": [1, 0, None],
        "untouched": [1, 0, None],
        "untouched_top1": [1, 0, None],
    }
    assert {name: result.values(name) for name in expected} == expected
    assert result.label == "taught"
    assert [record.case_id for record in result.records] == ["france", None, None]


def test_outputs_are_the_models_own_and_margins_follow_from_the_log_probs(taught_llama, tiny_tokenizer):
    result = run(taught_llama, tiny_tokenizer)
    assert result.records[1].edit.output == " Rome."
    assert result.records[1].paraphrases[1].output == " Paris."
    assert result.records[0].neighborhood[1].output == " Madrid."
    assert result.records[0].neighborhood[1].says_answer is None
    for record, value in zip(result.records[:2], result.values("margin"), strict=False):
        assert value == record.edit.log_prob_new - record.edit.log_prob_old
    assert result.values("margin")[0] > 0 > result.values("margin")[1]
    assert result.values("margin")[2] is None


def test_the_summary_is_the_mean_of_the_values_that_exist(taught_llama, tiny_tokenizer):
    result = run(taught_llama, tiny_tokenizer, fluency_tokens=4)
    summary = result.summary()
    for name, interval in summary.items():
        values = [value for value in result.values(name) if value is not None]
        assert interval.mean == pytest.approx(sum(values) / len(values))
        assert interval.n == len(values)
    assert summary["efficacy"].mean == pytest.approx(2 / 3)
    # the model ends after one word: there is no text to be fluent
    assert set(METRICS) - {"fluency"} | {"untouched", "untouched_top1"} == set(summary)
    assert "portability" not in run(taught_llama, tiny_tokenizer, [BARE]).summary()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_padding_and_batch_size_change_nothing(tiny_llama, tiny_tokenizer, side, batch_size):
    reference = run(tiny_llama, tiny_tokenizer, batch_size=3)
    tiny_tokenizer.padding_side = side
    result = run(tiny_llama, tiny_tokenizer, batch_size=batch_size)
    for name in reference.summary():
        if METRICS.get(name) and not METRICS[name].percent:
            got = [value for value in result.values(name) if value is not None]
            assert got == pytest.approx([v for v in reference.values(name) if v is not None], rel=1e-4, abs=1e-4)
        else:
            assert result.values(name) == reference.values(name)
    assert [record.edit.output for record in result.records] == [record.edit.output for record in reference.records]


def test_the_order_of_requests_is_that_of_the_records(taught_llama, tiny_tokenizer):
    forward = run(taught_llama, tiny_tokenizer)
    backward = run(taught_llama, tiny_tokenizer, REQUESTS[::-1])
    assert [r.edit.prompt for r in backward.records] == [r.prompt for r in REQUESTS[::-1]]
    assert backward.values("efficacy") == forward.values("efficacy")[::-1]


@pytest.fixture
def talkative(taught_llama, tiny_tokenizer):
    """The taught model, except that it goes on to " Rome" where it would end its answer."""
    end = tiny_tokenizer.eos_token_id
    follow = tiny_tokenizer(" Rome", add_special_tokens=False)["input_ids"][0]
    tiny_tokenizer.eos_token = None
    taught_llama.generation_config.eos_token_id = None
    with torch.no_grad():
        taught_llama.lm_head.weight[[follow, end]] = taught_llama.lm_head.weight[[end, follow]]
    return taught_llama


def test_behind_a_plain_prompt_only_the_first_sentence_counts(talkative, tiny_tokenizer):
    answer = run(talkative, tiny_tokenizer, [KNOWN], max_new_tokens=8).records[0].edit
    assert answer.output.startswith(" Paris. Rome"), "the model stopped: the test tests nothing"
    assert answer.says_new
    assert not answer.says_old


def test_with_a_chat_template_the_whole_turn_counts(talkative, tiny_tokenizer):
    # the same text as the plain prompt and its answer, by way of a template
    tiny_tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ ' ' if m['role'] == 'assistant' }}{{ m['content'] }}{% endfor %}"
    )
    plain = run(talkative, tiny_tokenizer, [KNOWN], max_new_tokens=8).records[0].edit
    answer = run(talkative, tiny_tokenizer, [KNOWN], max_new_tokens=8, chat_template=True).records[0].edit
    assert answer.output == plain.output
    assert answer.log_prob_new == pytest.approx(plain.log_prob_new)
    assert answer.says_new
    assert answer.says_old


def test_a_neighbour_whose_right_answer_is_the_new_one_has_no_magnitude(taught_llama, tiny_tokenizer):
    same, other = {"prompt": "The capital of Italy is", "answer": " rome"}, {"prompt": "Anna Berg", "answer": "Oslo"}
    request = EditRequest(prompt="The capital of France is", target_new="Rome", neighborhood=[same, other, "Spain"])
    probes = run(taught_llama, tiny_tokenizer, [request]).records[0].neighborhood
    assert [probe.log_prob_new is None for probe in probes] == [True, False, True]
    (score,) = score_targets(taught_llama, tiny_tokenizer, [("Anna Berg", "Rome")])
    assert probes[1].log_prob_new == pytest.approx(score.log_prob, abs=1e-4)


def test_a_neighbour_for_which_the_new_answer_is_an_alias_has_no_magnitude(taught_llama, tiny_tokenizer):
    probe = {"prompt": "The capital of Italy is", "answer": "Oslo"}
    one, other = ({**probe, "aliases": aliases} for aliases in (["Bern", "rome"], ["Bern"]))
    request = EditRequest(prompt="The capital of France is", target_new="Rome", neighborhood=[one, other])
    record = run(taught_llama, tiny_tokenizer, [request]).records[0]
    assert [answer.log_prob_new is None for answer in record.neighborhood] == [True, False]
    assert [answer.says_answer for answer in record.neighborhood] == [True, False]
    assert METRICS["magnitude_neighborhood"].value(record) == 0.0  # of the second alone: the model says Rome


class TestAliases:
    """The taught model says Rome for Italy and Paris for France: "Oslo" is never right by itself."""

    ASKED = EditRequest(
        prompt="The capital of France is",
        target_new="Bern",
        neighborhood=[
            {"prompt": "The capital of Italy is", "answer": "Oslo", "aliases": ["Bern", "Rome", "rome."]},
            {"prompt": "What is the capital of France?", "answer": "Paris", "aliases": ["Rome"]},
        ],
        portability=[
            {"prompt": "The capital of Italy is", "answer": "Oslo", "aliases": ["Rom"]},
            {"prompt": "Which city is the capital of Italy?", "answer": "Oslo", "aliases": ["The City", "ROME"]},
        ],
    )
    FACTS = (
        Probe(prompt="The capital of Italy is", answer="Oslo", aliases=("Rome",)),
        Probe(prompt="What is the capital of France?", answer="Oslo", aliases=("Rome",)),
        Probe(prompt="Anna Berg"),
    )

    @staticmethod
    def bare(probe):
        return Probe(prompt=probe.prompt, answer=probe.answer)

    def test_any_right_answer_makes_it_right_and_the_record_says_which(self, taught_llama, tiny_tokenizer):
        result = run(taught_llama, tiny_tokenizer, [self.ASKED], self.FACTS)
        (record,) = result.records
        assert [(a.says_answer, a.said_alias) for a in record.neighborhood] == [(True, "Rome"), (True, None)]
        assert [(a.says_answer, a.said_alias) for a in record.portability] == [(False, None), (True, "ROME")]
        assert [(a.says_answer, a.said_alias) for a in result.untouched] == [
            (True, "Rome"),
            (False, None),
            (None, None),
        ]
        assert [a.aliases for a in record.neighborhood] == [p.aliases for p in self.ASKED.neighborhood]
        means = {name: interval.mean for name, interval in result.summary().items()}
        assert (means["specificity"], means["portability"], means["untouched"]) == (1, 1 / 2, 1 / 2)
        assert (means["specificity_top1"], means["portability_top1"], means["untouched_top1"]) == (1 / 2, 0, 0)

    def test_without_them_verdicts_are_stricter_and_nothing_else_changes(self, taught_llama, tiny_tokenizer):
        stripped = self.ASKED.model_copy(
            update={name: tuple(map(self.bare, getattr(self.ASKED, name))) for name in ("neighborhood", "portability")}
        )
        options = {"max_new_tokens": 8}
        with_them = run(taught_llama, tiny_tokenizer, [self.ASKED], self.FACTS, **options)
        without = run(taught_llama, tiny_tokenizer, [stripped], [self.bare(fact) for fact in self.FACTS], **options)
        strict = {"aliases": (), "said_alias": None}

        def answers(evaluation):
            (record,) = evaluation.records
            return (*record.neighborhood, *record.portability, *evaluation.untouched)

        for more, less in zip(answers(with_them), answers(without), strict=True):
            expected = {**strict, "says_answer": less.says_answer, "log_prob_new": less.log_prob_new}
            assert more.model_copy(update=expected) == less
            assert more.says_answer == (
                less.says_answer or (None if more.answer is None else more.said_alias is not None)
            )
        assert with_them.records[0].edit == without.records[0].edit
        with pytest.raises(ReportError, match="different right answers"):
            compare(with_them, without)

    def test_the_longest_right_answer_fits_into_the_output(self, tiny_llama, tiny_tokenizer):
        long = "Rome on the Tiber in Latium in the middle of Italy"
        plain = Probe(prompt="The capital of Italy is", answer="Oslo")
        aliased = plain.model_copy(update={"aliases": (long,)})
        short, longer = (longest_target(tiny_tokenizer, [probe]) for probe in (plain, aliased))
        assert short < longer == len(tiny_tokenizer(long, add_special_tokens=False)["input_ids"])

    def test_they_survive_the_files(self, taught_llama, tiny_tokenizer, tmp_path):
        result = run(taught_llama, tiny_tokenizer, [self.ASKED], self.FACTS)
        save_evaluation(result, tmp_path / "results")
        assert load_evaluation(tmp_path / "results") == result
        again = run(taught_llama, tiny_tokenizer, [self.ASKED], self.FACTS, checkpoint=tmp_path / "unfinished.jsonl")
        assert (
            run(taught_llama, tiny_tokenizer, [self.ASKED], self.FACTS, checkpoint=tmp_path / "unfinished.jsonl")
            == again
        )

    def test_records_of_before_there_were_any_are_read(self, taught_llama, tiny_tokenizer, tmp_path):
        result = run(taught_llama, tiny_tokenizer)
        save_evaluation(result, tmp_path)
        lines = (tmp_path / "records.jsonl").read_text()
        (tmp_path / "records.jsonl").write_text(lines.replace(',"aliases":[],"said_alias":null', ""))
        assert "alias" not in (tmp_path / "records.jsonl").read_text()
        assert load_evaluation(tmp_path) == result


def test_fluency_is_measured_on_a_longer_text_where_it_is_asked_for(tiny_llama, tiny_tokenizer):
    result = run(tiny_llama, tiny_tokenizer, fluency_tokens=20)
    texts = [record.continuation for record in result.records]
    assert texts[0].startswith(result.records[0].edit.output[:5])
    assert result.values("fluency") == [ngram_entropy(text) for text in texts]
    assert result.settings["fluency_tokens"] == 20
    assert run(tiny_llama, tiny_tokenizer).values("fluency") == [None, None, None]


@pytest.mark.parametrize("setting", ["batch_size", "max_new_tokens", "fluency_tokens"])
def test_settings_out_of_range_are_named(tiny_llama, tiny_tokenizer, setting):
    with pytest.raises(SettingError, match=f"{setting} is 0"):
        run(tiny_llama, tiny_tokenizer, **{setting: 0})


def test_nothing_to_evaluate_is_an_error(tiny_llama, tiny_tokenizer):
    with pytest.raises(SettingError, match="nothing to evaluate"):
        run(tiny_llama, tiny_tokenizer, [], untouched=None)


class TestFiles:
    def test_a_saved_evaluation_loads_equal(self, taught_llama, tiny_tokenizer, tmp_path):
        result = run(taught_llama, tiny_tokenizer, label="right after")
        summary = json.loads(save_evaluation(result, tmp_path / "results").read_text())
        assert load_evaluation(tmp_path / "results") == result
        assert len((tmp_path / "results" / "records.jsonl").read_text().splitlines()) == len(REQUESTS)
        assert summary["label"] == "right after"
        assert summary["metrics"]["efficacy"]["mean"] == pytest.approx(2 / 3)
        assert all(entry["definition"] for entry in summary["metrics"].values())

    def test_a_damaged_model_is_still_reported_in_strict_json(self, taught_llama, tiny_tokenizer, tmp_path):
        with torch.no_grad():
            taught_llama.lm_head.weight.fill_(math.nan)
        save_evaluation(run(taught_llama, tiny_tokenizer), tmp_path)

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
        assert summary["metrics"]["margin"]["mean"] == "nan"
        assert math.isnan(load_evaluation(tmp_path).records[0].edit.log_prob_new)

    def test_an_incomplete_folder_is_refused(self, taught_llama, tiny_tokenizer, tmp_path):
        save_evaluation(run(taught_llama, tiny_tokenizer), tmp_path)
        (tmp_path / "records.jsonl").unlink()
        with pytest.raises(ReportError, match=r"records\.jsonl is missing"):
            load_evaluation(tmp_path)
        (tmp_path / "records.jsonl").write_text("{}\n")
        with pytest.raises(ReportError, match="no evaluation this version can read"):
            load_evaluation(tmp_path)


class TestCompare:
    def test_changes_are_paired_by_request(self, taught_llama, tiny_llama, tiny_tokenizer):
        before = run(tiny_llama, tiny_tokenizer, label="before")
        after = run(taught_llama, tiny_tokenizer, label="after")
        changes = compare(before, after)
        for name, change in changes.items():
            pairs = [(b, a) for b, a in zip(before.values(name), after.values(name), strict=True) if b is not None]
            assert change.difference.mean == pytest.approx(sum(a - b for b, a in pairs) / len(pairs))
        assert all(change.difference == (0, 0, 0, change.before.n) for change in compare(after, after).values())

    def test_evaluations_of_other_prompts_or_settings_are_refused(self, taught_llama, tiny_tokenizer):
        one = run(taught_llama, tiny_tokenizer, max_new_tokens=8)
        with pytest.raises(ReportError, match="different prompts"):
            compare(one, run(taught_llama, tiny_tokenizer, REQUESTS[:2], max_new_tokens=8))
        with pytest.raises(ReportError, match="asked differently"):
            compare(one, run(taught_llama, tiny_tokenizer, max_new_tokens=9))

    def test_tables_show_the_means_under_their_labels(self, taught_llama, tiny_llama, tiny_tokenizer):
        from rich.console import Console

        before = run(tiny_llama, tiny_tokenizer, label="before")
        after = run(taught_llama, tiny_tokenizer, label="after")
        for table in (summary_table([before, after]), change_table(before, after)):
            console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
            console.print(table)
            text = console.export_text()
            (row,) = [line for line in text.splitlines() if "Efficacy, %" in line]
            assert "66.7" in row
            assert "before" in text
            assert "after" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is False")
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_gpu_gives_the_verdicts_of_a_cpu(taught_llama, tiny_tokenizer, padding_side):
    here = run(taught_llama, tiny_tokenizer)
    tiny_tokenizer.padding_side = padding_side
    there = run(taught_llama.to("cuda"), tiny_tokenizer)
    for name in METRICS:
        assert there.values(name) == pytest.approx(here.values(name), abs=1e-3, nan_ok=True), name
    assert [record.edit.output for record in there.records] == [record.edit.output for record in here.records]
