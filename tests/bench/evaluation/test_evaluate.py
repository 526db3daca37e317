"""An evaluation says what the model said: known models get known verdicts, and all numbers follow from records."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.bench.evaluation import (
    METRICS,
    ngram_entropy,
)
from corsa_plugins.bench.evaluation.metrics import select_metrics
from corsa_plugins.errors import SettingError
from tests.support.taught import BARE, KNOWN, REQUESTS, run


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


def test_it_says_which_model_was_asked_and_what(taught_llama, tiny_tokenizer):
    first, again = (run(taught_llama, tiny_tokenizer).inputs for _ in range(2))
    assert first == again
    assert set(first) == {"model", "tokenizer", "requests"}
    assert run(taught_llama, tiny_tokenizer, [BARE]).inputs["requests"] != first["requests"]
    with torch.no_grad():
        taught_llama.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    other = run(taught_llama, tiny_tokenizer).inputs
    assert {name for name in first if other[name] != first[name]} == {"model"}


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
    assert {metric.name for metric in select_metrics(of=None)} - {"fluency"} == set(summary)
    assert "portability" not in run(taught_llama, tiny_tokenizer, [BARE]).summary()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_padding_and_batch_size_change_nothing(tiny_llama, tiny_tokenizer, side, batch_size):
    reference = run(tiny_llama, tiny_tokenizer, batch_size=3)
    tiny_tokenizer.padding_side = side
    result = run(tiny_llama, tiny_tokenizer, batch_size=batch_size)
    for name in reference.summary():
        if not METRICS[name].percent:
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is False")
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_gpu_gives_the_verdicts_of_a_cpu(taught_llama, tiny_tokenizer, padding_side):
    here = run(taught_llama, tiny_tokenizer)
    tiny_tokenizer.padding_side = padding_side
    there = run(taught_llama.to("cuda"), tiny_tokenizer)
    for name in (metric.name for metric in select_metrics(of=None)):
        assert there.values(name) == pytest.approx(here.values(name), abs=1e-3, nan_ok=True), name
    assert [record.edit.output for record in there.records] == [record.edit.output for record in here.records]
