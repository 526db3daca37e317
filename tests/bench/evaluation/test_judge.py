"""From outputs to verdicts: what counts as right, and what is no damage done."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.bench.evaluation import METRICS, ReportError, compare, load_evaluation, save_evaluation
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.model.asking import score_targets
from tests.support.taught import run


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
        summary = json.loads((tmp_path / "summary.json").read_text())
        del summary["sha256"], summary["checksum"]  # nor were there checksums
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert load_evaluation(tmp_path) == result
