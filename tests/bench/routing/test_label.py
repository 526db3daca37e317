"""The base model names a description: the choice follows its log-probabilities."""

from __future__ import annotations

import copy

import pytest
import torch

from corsa_plugins.bench.routing.accuracy import routing_accuracy
from corsa_plugins.bench.routing.label import NEUTRAL, LabelRouter
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.tokenization import join
from tests.support.routing import DESCRIPTIONS, QUESTIONS


@pytest.fixture(scope="module")
def trained_router_model(_session_llama, _session_tokenizer):
    """A model that was taught which collection each question belongs to."""
    tokenizer, model = _session_tokenizer, copy.deepcopy(_session_llama).train()
    router = LabelRouter(model, tokenizer, DESCRIPTIONS, "{descriptions}\n{question}\nCollection:")
    rows = [join(tokenizer, router.prompt(question), router.labels[place]) for question, place in QUESTIONS.items()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        losses = []
        for row in rows:
            logits = model(input_ids=torch.tensor([row.prompt_ids + row.target_ids])).logits[0]
            predicted = logits[len(row.prompt_ids) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(predicted, torch.tensor(row.target_ids)))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    return model.eval()


def router_of(model, tokenizer, **options):
    return LabelRouter(model, tokenizer, DESCRIPTIONS, "{descriptions}\n{question}\nCollection:", **options)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_models_choice_is_followed(trained_router_model, tiny_tokenizer, batch_size):
    router = router_of(trained_router_model, tiny_tokenizer, batch_size=batch_size)
    routed = router.route(list(QUESTIONS))
    assert routed == list(QUESTIONS.values())
    assert router.route(list(QUESTIONS)[::-1]) == routed[::-1]
    assert routing_accuracy(routed, list(QUESTIONS.values()))[:2] == (1, 1)
    assert router.route([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize(("labels", "single"), [(["Paris", "Oslo"], True), (["first of all", "Oslo"], False)])
def test_labels_of_one_token_and_of_several_are_scored_alike(tiny_llama, tiny_tokenizer, labels, single, batch_size):
    """The first are read off one forward pass; both are log p(label | prompt)."""
    router = router_of(tiny_llama, tiny_tokenizer, labels=labels, batch_size=batch_size)
    pairs = [(router.prompt(question), label) for question in QUESTIONS for label in labels]
    lengths = [len(join(tiny_tokenizer, *pair).target_ids) for pair in pairs]
    assert (max(lengths) == 1) == single
    expected = [score.log_prob for score in score_targets(tiny_llama, tiny_tokenizer, pairs)]
    found = [value for row in router.scores(list(QUESTIONS)) for value in row]
    assert found == pytest.approx(expected, abs=1e-4)


def test_braces_in_texts_stay_what_they_are(tiny_llama, tiny_tokenizer):
    router = LabelRouter(tiny_llama, tiny_tokenizer, ["{question}", "{}"], "{question} of {descriptions}")
    assert router.prompt("{descriptions} {x}") == "{descriptions} {x} of A: {question}\nB: {}"


def test_calibrated_scores_are_what_a_question_adds_to_none(tiny_llama, tiny_tokenizer):
    questions = list(QUESTIONS)
    plain = torch.tensor(router_of(tiny_llama, tiny_tokenizer).scores([*questions, *NEUTRAL]))
    calibrated = router_of(tiny_llama, tiny_tokenizer, calibrate=True)
    bias = plain[len(questions) :].mean(0)
    torch.testing.assert_close(
        torch.tensor(calibrated.scores(questions)), plain[: len(questions)] - bias, atol=1e-4, rtol=0
    )
    # a model that always says the same label is left with no preference
    assert calibrated.route(questions) == (plain[: len(questions)] - bias).argmax(1).tolist()
    assert calibrated.scores([]) == []


def test_descriptions_that_the_model_has_no_room_for_are_refused(tiny_llama, tiny_tokenizer):
    router = LabelRouter(tiny_llama, tiny_tokenizer, ["capital " * 60, "people " * 60])
    with pytest.raises(SettingError, match="room for 128: shorten the descriptions"):
        router.route(list(QUESTIONS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"descriptions": []}, "needs a description"),
        ({"descriptions": ["a", " "]}, "needs a description"),
        ({"template": "{question}"}, r"no \{descriptions\}"),
        ({"labels": ["1"]}, "1 labels for 2"),
        ({"labels": ["1", "12"]}, "cannot be told apart"),
        ({"labels": ["1", "1"]}, "cannot be told apart"),
        ({"descriptions": ["x"] * 27}, "27 adapters"),
    ],
)
def test_a_router_that_cannot_work_is_refused(tiny_llama, tiny_tokenizer, options, message):
    with pytest.raises(SettingError, match=message):
        LabelRouter(tiny_llama, tiny_tokenizer, **{"descriptions": ["a", "b"], **options})
