"""Batched inference equals asking one prompt at a time, by the definition."""

from __future__ import annotations

import copy

import pytest
import torch

from corsa_plugins.inference import cut_answer, generate_answers, score_targets
from corsa_plugins.tokenization import encode_prompt, join

PROMPTS = [
    "The capital of France is",
    "What?",
    "Which city is the capital of Italy, and where was Anna Berg born?",
    "Anna Berg",
    "New York City, St. Louis and Nur-Sultan are cities; she plays the violin and works for",
]
PAIRS = [(prompt, target) for prompt in PROMPTS for target in ("Paris", "Buenos Aires")]


def greedy_by_hand(model, ids, steps, end):
    for step in range(steps):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            return ids, step
        ids = [*ids, token]
    return ids, steps


def log_prob_by_hand(model, prompt_ids, target_ids):
    logits = model(torch.tensor([prompt_ids + target_ids])).logits[0].double().log_softmax(-1)
    start = len(prompt_ids) - 1
    return sum(float(logits[start + i, token]) for i, token in enumerate(target_ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_generation_is_greedy_search_one_prompt_at_a_time(tiny_llama, tiny_tokenizer, side, batch_size):
    tiny_tokenizer.padding_side = side
    answers = generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        asked = encode_prompt(tiny_tokenizer, prompt)
        with torch.no_grad():
            ids, steps = greedy_by_hand(tiny_llama, asked, 6, tiny_tokenizer.eos_token_id)
        assert answer.text == tiny_tokenizer.decode(ids[len(asked) :], skip_special_tokens=True)
        assert answer.finished == (steps < 6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_are_the_log_probabilities_one_pair_at_a_time(tiny_llama, tiny_tokenizer, side, batch_size):
    tiny_tokenizer.padding_side = side
    scores = score_targets(tiny_llama, tiny_tokenizer, PAIRS, batch_size=batch_size)
    for (prompt, target), score in zip(PAIRS, scores, strict=True):
        ids = join(tiny_tokenizer, prompt, target)
        with torch.no_grad():
            assert score.log_prob == pytest.approx(log_prob_by_hand(tiny_llama, *ids), rel=1e-4)
        assert score.n_tokens == len(ids.target_ids)


def test_top1_means_that_the_greedy_answer_starts_with_the_target(tiny_llama, tiny_tokenizer):
    # the model's own answers as targets, and the same with another last word
    answers = generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=4)
    pairs = [(p, a.text) for p, a in zip(PROMPTS, answers, strict=True) if a.text.strip()]
    assert pairs
    for (prompt, target), score in zip(pairs, score_targets(tiny_llama, tiny_tokenizer, pairs), strict=True):
        asked, wanted = join(tiny_tokenizer, prompt, target)
        with torch.no_grad():
            ids, _ = greedy_by_hand(tiny_llama, asked, len(wanted), None)
        assert score.top1 == (ids[len(asked) :] == wanted)
    assert not any(s.top1 for s in score_targets(tiny_llama, tiny_tokenizer, [(p, t + " zebra") for p, t in pairs]))


def test_an_answer_ends_where_the_model_ends_it(taught_llama, tiny_tokenizer, facts):
    answers = generate_answers(taught_llama, tiny_tokenizer, list(facts), max_new_tokens=12)
    assert [answer.text for answer in answers] == [f" {answer}." for answer in facts.values()]
    assert all(answer.finished for answer in answers)
    cut = generate_answers(taught_llama, tiny_tokenizer, list(facts), max_new_tokens=1)
    assert not any(answer.finished for answer in cut)


def test_the_models_own_sampling_settings_do_not_make_it_sample(tiny_llama, tiny_tokenizer):
    plain = generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6)
    tiny_llama.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, num_beams=2)
    assert generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6) == plain


def test_nor_do_the_models_own_lengths_and_suppressions_change_an_answer(taught_llama, tiny_tokenizer, facts):
    own = taught_llama.generation_config
    own.update(min_new_tokens=10, max_length=3, suppress_tokens=tiny_tokenizer(" Paris")["input_ids"])
    answers = generate_answers(taught_llama, tiny_tokenizer, list(facts), max_new_tokens=12)
    assert [answer.text for answer in answers] == [f" {answer}." for answer in facts.values()]
    assert taught_llama.generation_config is own


def test_a_peft_model_answers_with_its_adapter(taught_llama, tiny_tokenizer, facts):
    peft = pytest.importorskip("peft")
    plain = score_targets(taught_llama, tiny_tokenizer, list(facts.items()))
    lora = peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5)
    model = peft.get_peft_model(copy.deepcopy(taught_llama), lora).train()
    assert [s.log_prob for s in score_targets(model, tiny_tokenizer, list(facts.items()))] == pytest.approx(
        [s.log_prob for s in plain], rel=1e-4, abs=1e-6
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    assert generate_answers(model, tiny_tokenizer, list(facts)) != generate_answers(
        taught_llama, tiny_tokenizer, list(facts)
    )
    with model.disable_adapter():
        assert generate_answers(model, tiny_tokenizer, list(facts)) == generate_answers(
            taught_llama, tiny_tokenizer, list(facts)
        )


def test_modes_of_modules_are_given_back(tiny_llama, tiny_tokenizer):
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    before = [module.training for module in tiny_llama.modules()]
    generate_answers(tiny_llama, tiny_tokenizer, PROMPTS[:1], max_new_tokens=1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_targets(tiny_llama, tiny_tokenizer, PAIRS, batch_size=0)
    assert [module.training for module in tiny_llama.modules()] == before
    assert torch.is_grad_enabled()


def test_a_damaged_model_is_reported(tiny_llama, tiny_tokenizer, caplog):
    with torch.no_grad():
        tiny_llama.lm_head.weight.fill_(torch.nan)
    score_targets(tiny_llama, tiny_tokenizer, PAIRS)
    assert "10 of 10 log-probabilities are NaN" in caplog.text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris. The capital of Italy is Rome.", "Paris"),
        (" Paris . he plays", "Paris"),
        ("\n\nParis\nQ: next", "Paris"),
        (" St. Louis. It is", "St. Louis"),
        (" J. R. R. Tolkien wrote it. Then", "J. R. R. Tolkien wrote it"),
        (" 3.5 metres! Really", "3.5 metres"),
        (' the "Vega." Then', 'the "Vega'),
        ("東京です。大阪", "東京です"),
        (" Buenos Aires", "Buenos Aires"),
        ("  \n ", ""),
        (". Then", ""),
    ],
)
def test_an_answer_is_the_first_sentence(text, answer):
    assert cut_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris, which is known for its mus", "Paris"),
        (" the old town of Nur-Sul", "the old town of"),
        (" Paris, Texas. It", "Paris, Texas"),
        (" Pari", "Pari"),
    ],
)
def test_an_answer_cut_off_by_its_length_is_cut_back(text, answer):
    assert cut_answer(text, finished=False) == answer
