"""A question goes to the adapter that the base model names, and is answered by that adapter alone."""

from __future__ import annotations

import copy
import importlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.routing.report import RoutingReport
from corsa_plugins.bench.routing.routing import (
    NEUTRAL,
    NearestRouter,
    Router,
    active_adapter,
    evaluate_routed,
    list_prompts,
    list_subjects,
    load_adapters,
    request_template,
    routing_accuracy,
    routing_share_of_gap,
    split_requests,
    summarise,
)
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.loading import LoadingError
from corsa_plugins.model.tokenization import encode_prompt, join

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
        for label, description in zip("AB", DESCRIPTIONS, strict=True)
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
    router = Router(tiny_llama, tiny_tokenizer, ["{question}", "{}"], "{question} of {descriptions}")
    assert router.prompt("{descriptions} {x}") == "{descriptions} {x} of A: {question}\nB: {}"


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
    assert found.accuracy.n == 3
    assert found.accuracy_of(["prompt"]).mean == pytest.approx(2 / 3)
    assert found.accuracy_of(["prompt"], group=1).mean == 0
    for route in found.routes:
        assert route.chosen == choose(route.prompt)
        assert route.true == int(route.index == 2)


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


def states_by_hand(model, tokenizer, prompts, layer):
    rows = [model(torch.tensor([encode_prompt(tokenizer, prompt)]), output_hidden_states=True) for prompt in prompts]
    return torch.stack([row.hidden_states[layer][0, -1].double() for row in rows])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_nearest_request_is_that_of_the_largest_cosine(tiny_llama, tiny_tokenizer, batch_size):
    peft = pytest.importorskip("peft")
    questions = list(QUESTIONS)
    with torch.no_grad():
        prompts = states_by_hand(tiny_llama, tiny_tokenizer, [r.prompt for group in GROUPS for r in group], 1)
        asked = states_by_hand(tiny_llama, tiny_tokenizer, questions, 1)
    mean = prompts.mean(0)
    cosines = torch.nn.functional.cosine_similarity((asked - mean)[:, None], (prompts - mean)[None], dim=-1)
    expected = torch.stack([cosines[:, :2].amax(1), cosines[:, 2]], 1)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_llama, config)
    router = NearestRouter(model, tiny_tokenizer, GROUPS, layer=1, batch_size=batch_size)
    torch.testing.assert_close(torch.tensor(router.scores(questions)).double(), expected, atol=1e-5, rtol=0)
    assert router.route(questions) == expected.argmax(1).tolist()
    assert router.scores([]) == router.route([]) == []


def test_an_edit_prompt_is_nearest_to_itself_whatever_the_order_of_the_groups(taught_llama, tiny_tokenizer):
    for groups in (GROUPS, GROUPS[::-1]):
        router = NearestRouter(taught_llama, tiny_tokenizer, groups)
        assert router.labels == ["1", "2"]
        for place, group in enumerate(groups):
            prompts = [request.prompt for request in group]
            assert router.route(prompts) == [place] * len(group)
            assert [row[place] for row in router.scores(prompts)] == pytest.approx([1.0] * len(group), abs=1e-5)


def test_a_nearest_router_that_cannot_work_is_refused(tiny_llama, tiny_tokenizer):
    with pytest.raises(SettingError, match="every adapter needs requests"):
        NearestRouter(tiny_llama, tiny_tokenizer, [CAPITALS, []])
    with pytest.raises(SettingError, match=r"no \{question\}"):
        NearestRouter(tiny_llama, tiny_tokenizer, GROUPS, template="Say it:")
    for layer in (0, 3):
        with pytest.raises(SettingError, match="blocks 1 to 2"):
            NearestRouter(tiny_llama, tiny_tokenizer, GROUPS, layer=layer)


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
    with pytest.raises(SettingError, match="calibrate is for labels"):
        router_of(tiny_llama, tiny_tokenizer, calibrate=True, how="question")


def test_descriptions_that_the_model_has_no_room_for_are_refused(tiny_llama, tiny_tokenizer):
    router = Router(tiny_llama, tiny_tokenizer, ["capital " * 60, "people " * 60])
    with pytest.raises(SettingError, match="room for 128: shorten the descriptions"):
        router.route(list(QUESTIONS))


def test_groups_are_put_together_to_parts_of_about_equal_size():
    sizes = {"a": 5, "b": 1, "c": 3, "d": 2, "e": 1}
    requests = [
        EditRequest(prompt=f"{name} {i}", target_new="t") for i in range(5) for name in sizes if i < sizes[name]
    ]
    parts = split_requests(requests, lambda request: request.prompt[0], parts=3)
    assert sorted(request.prompt for part in parts for request in part) == sorted(r.prompt for r in requests)
    owners = [{request.prompt[0] for request in part} for part in parts]
    assert sum(map(len, owners)) == len(sizes)  # no group is torn apart
    assert sorted(map(len, parts)) == [3, 4, 5]
    for part in parts:
        assert [requests.index(request) for request in part] == sorted(requests.index(request) for request in part)
    for parts in (0, 6):
        with pytest.raises(SettingError, match="give 1 to 5"):
            split_requests(requests, lambda request: request.prompt[0], parts=parts)
    with pytest.raises(SettingError, match="goes with a function"):
        split_requests(requests, 2, parts=2)


def test_templates_and_subjects():
    request = EditRequest(prompt="The capital of France is", subject="France", target_new="Oslo")
    assert request_template(request) == "The capital of {} is"
    assert list_subjects([request, request]) == "France"
    for function in (request_template, lambda request: list_subjects([request])):
        with pytest.raises(SettingError, match="has no subject"):
            function(CAPITALS[0])


def test_a_prompt_is_asked_of_the_adapter_it_is_sent_to_alone(adapters, tiny_tokenizer, monkeypatch, tmp_path):
    """Probes scattered over adapters do not multiply the cost; and a stopped evaluation goes on where it was."""
    asked = []
    ask = generate_answers

    def count(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        return ask(model, tokenizer, prompts, **options)

    monkeypatch.setattr(importlib.import_module("corsa_plugins.bench.evaluation.evaluate"), "generate_answers", count)
    choose = lambda question: int("Spain" in question)  # noqa: E731
    whole = run(adapters, tiny_tokenizer, Fixed(choose), checkpoint=tmp_path)
    # of the first adapter six prompts and a portability probe; of the second the probe that two requests share, and
    # their edit prompts, which every record has
    assert sum(asked) == 7 + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter-1.jsonl", "adapter-2.jsonl"]
    asked.clear()
    again = run(adapters, tiny_tokenizer, Fixed(choose), checkpoint=tmp_path)
    assert not asked
    assert again == whole


def test_adapters_are_loaded_side_by_side(adapters, tiny_llama, tiny_tokenizer, tmp_path):
    adapters.save_pretrained(tmp_path, selected_adapters=["capitals", "people"])
    base = copy.deepcopy(adapters).unload()
    loaded, names = load_adapters(base, [tmp_path / "capitals", tmp_path / "people"])
    assert names == ["1", "2"]
    assert loaded.active_adapters == ["1"]
    for name, own in zip(names, ("capitals", "people"), strict=True):
        with active_adapter(loaded, name):
            found = evaluate(loaded, tiny_tokenizer, [*CAPITALS, *PEOPLE], max_new_tokens=4, progress=False).records
        for record, expected in zip(found, alone(adapters, tiny_tokenizer, own), strict=True):
            assert_same(record.edit, expected.edit)
    with pytest.raises(LoadingError, match="none cannot be put on the model"):
        load_adapters(tiny_llama, [tmp_path / "none"])
    with pytest.raises(SettingError, match="no adapters"):
        load_adapters(tiny_llama, [])


def test_the_report_adds_up(adapters, tiny_tokenizer):
    choose = lambda question: int(question.startswith("W") or "Spain" in question)  # noqa: E731
    routed, true = run(adapters, tiny_tokenizer, Fixed(choose)), run(adapters, tiny_tokenizer)
    with active_adapter(adapters, "people"):
        single = evaluate(adapters, tiny_tokenizer, [*CAPITALS, *PEOPLE], max_new_tokens=4, progress=False)
    report = RoutingReport(["capitals", "people"], [2, 1], routed, true.evaluation, single)
    assert (report.chance, report.largest) == (1 / 2, 2 / 3)
    assert report.confusion() == [[2, 2], [1, 1]]
    assert sum(map(sum, report.confusion())) == 6
    parts = [report.part(place) for place in (0, 1)]
    for at, one in enumerate(report.evaluations):
        assert parts[0][at].records + parts[1][at].records == one.records
        for name in report.metrics:
            mine = [part[at].summary()[name] for part in parts if name in part[at].summary()]
            assert sum(i.mean * i.n for i in mine) / sum(i.n for i in mine) == pytest.approx(one.summary()[name].mean)
    data = report.as_dict()
    assert json.loads(json.dumps(data)) == data
    for metric in data["metrics"].values():
        assert metric["lost_by_routing"]["mean"] == pytest.approx(metric["routed"]["mean"] - metric["true"]["mean"])
    assert report.table().row_count == 2 + len(report.metrics)
    assert report.parts_table().row_count == 2
    with pytest.raises(SettingError, match="evaluate the requests of all parts"):
        RoutingReport(["capitals", "people"], [2, 2], routed, true.evaluation)
