"""What questions share is read once, rows that are done no more, and both only where the model comes out the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.model import shared_reading
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.reading import Reading, can_read_on, continue_greedily, shared_beginning
from corsa_plugins.model.shared_reading import by_prompt, saves_tokens
from corsa_plugins.model.tokenization import encode_prompt, join
from tests.model.test_asking import FAMILIES, random_model

SYSTEM = "You are asked for facts. Anna Berg was born in Oslo; she plays the violin and works for a city in Italy. "
SYSTEM = f"{2 * SYSTEM}Say what"
QUESTIONS = [f"{SYSTEM} {end}" for end in ("Paris", "a city in the country of", "no one.", "Italy. The capital is")]
PAIRS = [(prompt, target) for target in ("Paris", "Buenos Aires") for prompt in QUESTIONS]


def tokens_read(model: Any) -> list[torch.Size]:
    """Shapes of what passes through the first block from here on."""
    shapes: list[torch.Size] = []
    model.get_decoder().layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append((args[0] if args else kwargs["hidden_states"]).shape[:2]),
        with_kwargs=True,
    )
    return shapes


def test_what_all_begin_with_and_what_has_answers_is_read_once(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    shapes = tokens_read(taught_llama)
    score_targets(taught_llama, tiny_tokenizer, PAIRS)
    rows = [join(tiny_tokenizer, *pair) for pair in PAIRS]
    prompts = {tuple(row.prompt_ids) for row in rows}
    shared = shared_beginning(list(prompts))
    assert shared >= len(encode_prompt(tiny_tokenizer, SYSTEM))
    longest = max(len(row.target_ids) for row in rows)
    behind = [(1, shared), (4, max(map(len, prompts)) - shared), (8, longest - 1)]
    assert shapes[:3] == behind
    assert [rows for rows, _ in shapes[3:]] == [1, 1]  # two by themselves, to see that they are the same
    shapes.clear()
    generate_answers(taught_llama, tiny_tokenizer, QUESTIONS, max_new_tokens=1)
    assert shapes[:2] == behind[:2]


def test_a_row_that_is_done_is_read_no_more(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = [encode_prompt(tiny_tokenizer, question) for question in QUESTIONS]
    whole = continue_greedily(taught_llama, ids, 8, [])
    assert [len(row) for row in whole] == [8] * 4
    end = whole[0][2]  # from here on it ends an answer
    cut = [row[: row.index(end) + 1] if end in row else row for row in whole]
    shapes = tokens_read(taught_llama)
    assert continue_greedily(taught_llama, ids, 8, [end]) == cut
    steps = [rows for rows, width in shapes if width == 1]
    assert steps == [sum(len(row) > step for row in cut) for step in range(1, max(map(len, cut)))]
    assert steps[-1] < 4


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_says_behind_one_reading_what_it_says_by_itself(
    family: str, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(family, tiny_tokenizer)
    scores = score_targets(model, tiny_tokenizer, PAIRS)
    answers = generate_answers(model, tiny_tokenizer, QUESTIONS, max_new_tokens=5)
    monkeypatch.setattr(shared_reading.SharedReading, "LEAST", 1000)
    assert generate_answers(model, tiny_tokenizer, QUESTIONS, max_new_tokens=5) == answers
    alone = score_targets(model, tiny_tokenizer, PAIRS)
    assert [score.log_prob for score in scores] == pytest.approx([score.log_prob for score in alone], rel=1e-4)
    assert [score.top1 for score in scores] == [score.top1 for score in alone]


def test_a_model_that_does_not_go_on_as_if_it_had_read_all_is_asked_otherwise(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Here the first block takes away the mean of what it is given, which depends on how much that is."""
    wanted = copy.deepcopy(taught_llama)

    def centred(module: Any, args: Any, kwargs: Any) -> Any:
        return (args[0] - args[0].mean(dim=1, keepdim=True), *args[1:]), kwargs

    for model in (taught_llama, wanted):
        model.model.layers[0].register_forward_pre_hook(centred, with_kwargs=True)
    scores = score_targets(taught_llama, tiny_tokenizer, PAIRS, batch_size=1)
    for (prompt, target), score in zip(PAIRS, scores, strict=True):
        ids = join(tiny_tokenizer, prompt, target)
        with torch.no_grad():
            # the last token predicts nothing and is not read
            logits = wanted(torch.tensor([ids.prompt_ids + ids.target_ids[:-1]])).logits[0].log_softmax(-1)
        said = logits[len(ids.prompt_ids) - 1 :].gather(-1, torch.tensor(ids.target_ids)[:, None]).sum()
        assert score.log_prob == pytest.approx(float(said), rel=1e-4)


def test_windows_and_states_are_not_tried(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model("mistral", tiny_tokenizer)
    assert can_read_on(model, model.config.sliding_window - 1)
    assert not can_read_on(model, model.config.sliding_window)
    assert not can_read_on(random_model("mamba", tiny_tokenizer), 1)
    with pytest.raises(NotImplementedError, match="no keys"):
        Reading(random_model("rwkv", tiny_tokenizer)).read(torch.ones(1, 1).long(), torch.ones(1, 1).long(), 1)


def test_what_is_shared_is_counted_and_one_token_is_left_of_every_row(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert shared_beginning([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert shared_beginning([[1, 2], [1, 2, 4]]) == 1
    assert shared_beginning([[3], [3]]) == 0
    few = [join(tiny_tokenizer, prompt, "Paris") for prompt in ("Anna Berg", "The capital of France is")]
    assert not saves_tokens(few, 64)
    rows = [join(tiny_tokenizer, *pair) for pair in PAIRS]
    assert saves_tokens(rows, 64)
    assert not saves_tokens(rows, 1)
    places = by_prompt(rows, [len(row.prompt_ids) + len(row.target_ids) for row in rows])
    assert places[:4] == places[4:]  # the same prompt twice
    assert sorted(places[:4], key=lambda place: place) == [0, 1, 2, 3]
    longest = max(range(4), key=lambda index: len(rows[index].prompt_ids))
    assert places[longest] == 3
