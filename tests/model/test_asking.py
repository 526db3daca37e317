"""Batched inference equals asking one prompt at a time, by the definition."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import cut_answer, generate_answers, score_targets
from corsa_plugins.model.tokenization import encode_prompt, join

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


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES = {  # absolute, rotary and ALiBi positions, windows shorter than the prompts, mixtures, recurrent states
    "gpt2": GPT,
    "opt": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": SMALL,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "mistral": {**GROUPED, "sliding_window": 4},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "gemma3_text": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {**SMALL, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "head_dim": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64},
}


def random_model(family, tokenizer):
    torch.manual_seed(0)
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **tokens, **FAMILIES[family]))
    with torch.no_grad():  # at their usual small size, random weights say the same whatever they read
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                parameter.normal_(0, 0.4)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_padding_change_nothing_in_any_family(family, tiny_tokenizer):
    model = random_model(family, tiny_tokenizer)
    prompts = [*PROMPTS, "Anna", "Which city", "Oslo and"]  # some of one length, most not
    with torch.no_grad():
        by_hand = []
        for prompt in prompts:
            asked = encode_prompt(tiny_tokenizer, prompt)
            ids = asked
            for _ in range(5):
                token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                if token == tiny_tokenizer.eos_token_id:
                    break
                ids = [*ids, token]
            by_hand.append(tiny_tokenizer.decode(ids[len(asked) :], skip_special_tokens=True))
        expected = [log_prob_by_hand(model, *join(tiny_tokenizer, *pair)) for pair in PAIRS]
    assert len(set(by_hand)) > 1, "the model does not read its prompts"
    for side in ("left", "right"):
        tiny_tokenizer.padding_side = side
        for batch_size in (1, 7):
            answers = generate_answers(model, tiny_tokenizer, prompts, max_new_tokens=5, batch_size=batch_size)
            assert [answer.text for answer in answers] == by_hand
            scores = score_targets(model, tiny_tokenizer, PAIRS, batch_size=batch_size)
            assert [score.log_prob for score in scores] == pytest.approx(expected, rel=1e-4)


def test_more_tokens_than_learned_positions_are_refused_before_anything_is_run(tiny_tokenizer):
    model = random_model("gpt2", tiny_tokenizer)
    long = "The capital of France is Paris. " * 30
    with pytest.raises(SettingError, match=r"The capital .* need \d+ tokens and the model has 128"):
        generate_answers(model, tiny_tokenizer, ["Anna", long], max_new_tokens=4)
    with pytest.raises(SettingError, match="128 positions"):
        score_targets(model, tiny_tokenizer, [("Anna", "Oslo"), (long, "Paris")])
    rotary = random_model("gpt_neox", tiny_tokenizer)  # has no such table, and reads on
    rotary.config.max_position_embeddings = 8
    assert len(score_targets(rotary, tiny_tokenizer, [(long, "Paris")])) == 1


def test_the_last_position_is_used(tiny_tokenizer):
    model = random_model("gpt2", tiny_tokenizer)
    asked = len(encode_prompt(tiny_tokenizer, "Anna"))
    model.generation_config.eos_token_id = tiny_tokenizer.eos_token = None
    generate_answers(model, tiny_tokenizer, ["Anna"], max_new_tokens=129 - asked)
    with pytest.raises(SettingError, match="128 positions"):
        generate_answers(model, tiny_tokenizer, ["Anna"], max_new_tokens=130 - asked)


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
    for own in (
        {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "num_beams": 2},
        {"forced_bos_token_id": 9, "forced_eos_token_id": 1, "num_beams": 4, "num_return_sequences": 2},
        {"guidance_scale": 3.0, "sequence_bias": [[[40], 9.0]], "max_time": 0.0, "cache_implementation": "static"},
    ):
        tiny_llama.generation_config = GenerationConfig(**own)
        assert generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6) == plain


def test_a_tokenizer_without_padding_or_end_is_enough(tiny_llama, tiny_tokenizer):
    answers = generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6)
    scores = score_targets(tiny_llama, tiny_tokenizer, PAIRS)
    tiny_tokenizer.pad_token = None
    assert generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6) == answers
    assert score_targets(tiny_llama, tiny_tokenizer, PAIRS) == scores
    tiny_tokenizer.eos_token = tiny_llama.generation_config.eos_token_id = None
    endless = generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6)
    assert endless == generate_answers(tiny_llama, tiny_tokenizer, PROMPTS, max_new_tokens=6, batch_size=1)
    assert not any(answer.finished for answer in endless)


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


def test_the_head_of_a_frozen_model_is_not_copied_for_every_row(tiny_llama, tiny_tokenizer):
    """Torch multiplies a slice row by row, with a copy of the weight for each, where no gradient is wanted."""
    model = tiny_llama.requires_grad_(False)
    given = []
    handle = model.lm_head.register_forward_hook(lambda _, args, output: given.append(args[0]))
    score_targets(model, tiny_tokenizer, PAIRS)
    score_targets(model, tiny_tokenizer, PAIRS[:3])  # too few to be read in parts
    generate_answers(model, tiny_tokenizer, PROMPTS, max_new_tokens=2)
    assert len(given) >= 4
    assert all(hidden.is_contiguous() for hidden in given)
    assert any(hidden.shape[0] > 1 for hidden in given)
    assert any(hidden.shape[1] > 1 for hidden in given)
    handle.remove()
