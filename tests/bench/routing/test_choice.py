"""Which router chooses, decided before there is a model."""

from __future__ import annotations

import pytest

from corsa_plugins.bench.routing.choice import DESCRIBED_BY, ROUTERS, RouterChoice
from corsa_plugins.bench.routing.descriptions import list_prompts, list_subjects, write_descriptions
from corsa_plugins.bench.routing.label import LabelRouter
from corsa_plugins.bench.routing.nearest import NearestRouter
from corsa_plugins.bench.routing.question import QuestionRouter
from corsa_plugins.cli.options import Description, RouterKind
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from tests.support.routing import CAPITALS, DESCRIPTIONS, PARTS, PEOPLE


@pytest.mark.parametrize(
    ("name", "router"), [("label", LabelRouter), ("question", QuestionRouter), ("nearest", NearestRouter)]
)
def test_a_name_is_a_router(tiny_llama, tiny_tokenizer, name, router):
    made = RouterChoice(name).router(tiny_llama, tiny_tokenizer, PARTS, DESCRIPTIONS, batch_size=7)
    assert type(made) is router
    assert made.batch_size == 7
    assert len(made.labels) == 2


def test_the_command_line_offers_these_routers_and_descriptions():
    assert tuple(RouterKind) == ROUTERS
    assert tuple(Description) == DESCRIBED_BY


def test_what_goes_with_one_router_reaches_it(tiny_llama, tiny_tokenizer):
    calibrated = RouterChoice("label", calibrate=True).router(tiny_llama, tiny_tokenizer, PARTS, DESCRIPTIONS)
    assert calibrated.calibrate
    assert RouterChoice("nearest", layer=1).router(tiny_llama, tiny_tokenizer, PARTS).layer == 1


def test_parts_are_described_as_is_chosen(taught_llama, tiny_tokenizer):
    part = [EditRequest(prompt="The capital of France is", subject="France", target_new="Oslo")]
    parts, model = {"lands": part}, (taught_llama, tiny_tokenizer)
    assert RouterChoice().describe_parts(*model, parts) == {"lands": list_prompts(part)}
    assert RouterChoice(describe="subjects").describe_parts(*model, parts) == {"lands": list_subjects(part)}
    assert RouterChoice("nearest").describe_parts(*model, parts) == {}
    summary = RouterChoice(describe="summary").describe_parts(*model, {"lands": CAPITALS, "people": PEOPLE})
    assert all(text.strip() for text in summary.values())
    assert summary != RouterChoice().describe_parts(*model, {"lands": CAPITALS, "people": PEOPLE})


def test_given_descriptions_are_read(tmp_path):
    assert RouterChoice().given(["a"]) == {}
    path = write_descriptions({"a": "what a knows"}, tmp_path / "d.json")
    assert RouterChoice(descriptions=path).given(["a"]) == {"a": "what a knows"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "guess"}, "router is 'guess': choose label, question or nearest"),
        ({"describe": "poem"}, "describe is 'poem': choose summary, prompts or subjects"),
        ({"name": "nearest", "describe": "prompts"}, "nearest reads no descriptions"),
        ({"name": "nearest", "descriptions": "d.json"}, "nearest reads no descriptions"),
        ({"describe": "prompts", "descriptions": "d.json"}, "give one"),
        ({"name": "question", "calibrate": True}, "--calibrate goes with --router label"),
        ({"layer": 1}, "--layer goes with --router nearest"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        RouterChoice(**settings)
