"""A question goes to the adapter that the base model names, and is answered by that adapter alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.errors import SettingError
from corsa_plugins.evaluation import evaluate
from corsa_plugins.inference import score_targets
from corsa_plugins.requests import EditRequest
from corsa_plugins.routing import (
    Router,
    evaluate_routed,
    list_prompts,
    routing_accuracy,
    routing_share_of_gap,
    split_requests,
    summarise,
)
from corsa_plugins.tokenization import join

CAPITALS = [
    EditRequest(
        prompt=f"The capital of {land} is",
        target_new="Oslo",
        target_old="Rome",
        paraphrases=[f"What is the capital of {land}?"],
        neighborhood=[{"prompt": "The capital of Spain is", "answer": "Madrid"}],
    )
    for land in ("France", "Italy")
]
PEOPLE = [
    EditRequest(
        prompt="Anna Berg was born in",
        target_new="Paris",
        target_old="Oslo",
        paraphrases=["Where was Anna Berg born?"],
        portability=["What does Anna Berg play?"],
    )
]
GROUPS = [CAPITALS, PEOPLE]
DESCRIPTIONS = ["capital", "Anna Berg"]
QUESTIONS = {
    "The capital of France is": 0,
    "What is the capital of France?": 0,
    "The capital of Italy is": 0,
    "Anna Berg was born in": 1,
    "Where was Anna Berg born?": 1,
}


@pytest.fixture(scope="module")
def trained_router_model(_session_llama, _session_tokenizer):
    """A model that was taught which collection each question belongs to."""
    tokenizer, model = _session_tokenizer, copy.deepcopy(_session_llama).train()
    router = Router(model, tokenizer, DESCRIPTIONS, "{descriptions}\n{question}\nCollection:")
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
    return Router(model, tokenizer, DESCRIPTIONS, "{descriptions}\n{question}\nCollection:", **options)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_models_choice_is_followed(trained_router_model, tiny_tokenizer, batch_size):
    router = router_of(trained_router_model, tiny_tokenizer, batch_size=batch_size)
    routed = router.route(list(QUESTIONS))
    assert routed == list(QUESTIONS.values())
    assert router.route(list(QUESTIONS)[::-1]) == routed[::-1]
    assert routing_accuracy(routed, list(QUESTIONS.values()))[:2] == (1, 1)
    assert router.route([]) == []


@pytest.mark.parametrize("how", ["label", "question"])
def test_the_scores_are_log_probabilities_of_the_base_model(tiny_llama, tiny_tokenizer, how):
    peft = pytest.importorskip("peft")
    questions = list(QUESTIONS)
    plain = router_of(tiny_llama, tiny_tokenizer, how=how)
    pairs = [
        (plain.prompt(question), label) if how == "label" else (f"{description}\n", question)
        for question in questions
        for label, description in zip("12", DESCRIPTIONS, strict=True)
    ]
    expected = [score_targets(tiny_llama, tiny_tokenizer, [pair])[0].log_prob for pair in pairs]
    found = [value for row in plain.scores(questions) for value in row]
    assert found == pytest.approx(expected, abs=1e-4)
    assert plain.route(questions) == [int(b > a) for a, b in zip(expected[::2], expected[1::2], strict=True)]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama, config)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with_adapter = router_of(model, tiny_tokenizer, how=how)
    assert [value for row in with_adapter.scores(questions) for value in row] == pytest.approx(expected, abs=1e-4)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_braces_in_texts_stay_what_they_are(tiny_llama, tiny_tokenizer):
    router = Router(tiny_llama, tiny_tokenizer, ["{question}", "{}"], "{question} of {descriptions}")
    assert router.prompt("{descriptions} {x}") == "{descriptions} {x} of 1: {question}\n2: {}"


@pytest.fixture
def adapters(tiny_llama):
    """A model with two adapters that say different things."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama, config, adapter_name="capitals")
    model.add_adapter("people", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.5)
    return model


class Fixed:
    """Sends each question where it is told to."""

    labels = ("1", "2")

    def __init__(self, place_of):
        self.place_of = place_of

    def route(self, questions):
        return [self.place_of(question) for question in questions]


def run(model, tokenizer, router=None, **options):
    return evaluate_routed(
        model, tokenizer, GROUPS, ["capitals", "people"], router, max_new_tokens=4, progress=False, **options
    )


def alone(model, tokenizer, name):
    model.set_adapter(name)
    found = evaluate(model, tokenizer, [*CAPITALS, *PEOPLE], max_new_tokens=4, progress=False)
    model.set_adapter("capitals")
    return found.records


def assert_same(answer, other):
    one, two = answer.model_dump(), other.model_dump()
    assert {k: v for k, v in one.items() if not k.startswith("log")} == {
        k: v for k, v in two.items() if not k.startswith("log")
    }
    assert one["prompt"] == two["prompt"]
    for name in one:
        if name.startswith("log") and one[name] is not None:
            assert one[name] == pytest.approx(two[name], abs=1e-3)


def test_with_the_true_choice_each_group_is_answered_by_its_adapter(adapters, tiny_tokenizer):
    by_capitals, by_people = alone(adapters, tiny_tokenizer, "capitals"), alone(adapters, tiny_tokenizer, "people")
    assert by_capitals[0].edit.output != by_people[0].edit.output, "the adapters say the same: nothing is tested"
    found = run(adapters, tiny_tokenizer)
    assert found.accuracy[:2] == (1, 1)
    assert [record.index for record in found.evaluation.records] == [0, 1, 2]
    for record, expected in zip(found.evaluation.records, [*by_capitals[:2], by_people[2]], strict=True):
        assert_same(record.edit, expected.edit)


def test_every_prompt_is_routed_by_itself(adapters, tiny_tokenizer):
    by = [alone(adapters, tiny_tokenizer, "capitals"), alone(adapters, tiny_tokenizer, "people")]
    choose = lambda question: int(question.startswith("W") or "Spain" in question)  # noqa: E731
    found = run(adapters, tiny_tokenizer, Fixed(choose))
    for index, record in enumerate(found.evaluation.records):
        assert_same(record.edit, by[0][index].edit)
        for number, answer in enumerate(record.paraphrases):
            assert_same(answer, by[1][index].paraphrases[number])
        for field in ("neighborhood", "portability"):
            for number, answer in enumerate(getattr(record, field)):
                assert_same(answer, getattr(by[1][index], field)[number])
    # of the edit prompts and paraphrases: 2 of 4 for the capitals, 1 of 2 for the people
    assert found.accuracy.mean == 0.5
    assert found.accuracy.n == 6


def test_a_single_adapter_may_get_everything_and_all_is_as_it_was(adapters, tiny_tokenizer):
    adapters.set_adapter("people")
    flags = [parameter.requires_grad for parameter in adapters.parameters()]
    found = run(adapters, tiny_tokenizer, Fixed(lambda question: 0))
    assert found.accuracy.mean == pytest.approx(4 / 6)
    assert adapters.active_adapters == ["people"]
    assert adapters.active_adapter == "people"
    assert [parameter.requires_grad for parameter in adapters.parameters()] == flags
    with pytest.raises(RuntimeError):
        run(adapters, tiny_tokenizer, Fixed(lambda question: (_ for _ in ()).throw(RuntimeError())))
    assert adapters.active_adapters == ["people"]


def test_what_cannot_be_evaluated_is_named(adapters, tiny_tokenizer, taught_llama):
    with pytest.raises(SettingError, match="no adapters"):
        evaluate_routed(taught_llama, tiny_tokenizer, GROUPS, ["a", "b"])
    with pytest.raises(SettingError, match=r"the model lacks \['b'\]"):
        evaluate_routed(adapters, tiny_tokenizer, GROUPS, ["people", "b"])
    with pytest.raises(SettingError, match="2 groups and adapters"):
        evaluate_routed(adapters, tiny_tokenizer, GROUPS, ["people"])
    with pytest.raises(SettingError, match="untouched: not for several adapters"):
        run(adapters, tiny_tokenizer, untouched=["x"])
    with pytest.raises(SettingError, match="nothing to evaluate"):
        evaluate_routed(adapters, tiny_tokenizer, [[], []], ["people", "capitals"])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.data())
def test_parts_are_equal_and_keep_everything_in_order(size, data):
    requests = [EditRequest(prompt=f"p{i}", target_new="t", case_id=i % 3) for i in range(size)]
    parts = split_requests(requests, data.draw(st.integers(1, size)))
    assert [request for part in parts for request in part] == requests
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    by_case = split_requests(requests, lambda request: request.case_id)
    assert [part[0].case_id for part in by_case] == sorted({request.case_id for request in requests})
    assert all(len({request.case_id for request in part}) == 1 for part in by_case)
    assert sum(map(len, by_case)) == size


@pytest.mark.parametrize("by", [0, 4, -1])
def test_more_parts_than_requests_are_refused(by):
    with pytest.raises(SettingError, match="cannot be split"):
        split_requests([*CAPITALS, *PEOPLE], by)


def test_a_description_lists_prompts_or_is_the_models_own(taught_llama, tiny_tokenizer):
    assert list_prompts([*CAPITALS, *PEOPLE], 2) == "The capital of France is; The capital of Italy is"
    assert list_prompts([*CAPITALS, *CAPITALS], 9) == "The capital of France is; The capital of Italy is"
    with pytest.raises(SettingError, match="describe nothing"):
        list_prompts([])
    assert summarise(taught_llama, tiny_tokenizer, CAPITALS[:1], template="{prompts}") == "Paris."
    with pytest.raises(SettingError, match=r"no \{prompts\}"):
        summarise(taught_llama, tiny_tokenizer, CAPITALS, template="What is this?")


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
        ({"how": "guess"}, "how is 'guess'"),
    ],
)
def test_a_router_that_cannot_work_is_refused(tiny_llama, tiny_tokenizer, options, message):
    with pytest.raises(SettingError, match=message):
        Router(tiny_llama, tiny_tokenizer, **{"descriptions": ["a", "b"], **options})


def test_the_share_of_the_gap():
    assert routing_share_of_gap(0.6627, 0.66, 0.61) == pytest.approx(0.05 / 0.0527)
    assert routing_share_of_gap(0.6, 0.6, 0.6) is None
    with pytest.raises(SettingError, match="2 routes for 1"):
        routing_accuracy([0, 1], [0])
