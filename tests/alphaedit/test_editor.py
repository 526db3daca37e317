"""The editor of a model: edits are taken, nothing but the weights changes, and what cannot be is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditor, SmoothingSettings, StateError
from corsa_plugins.alphaedit.batch import BatchEdit
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.asking import score_targets
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, SETTINGS, Bench, TestbedBench, gpt2
from tests.support import checkpointing


def test_an_edit_is_taken(testbed_bench: TestbedBench) -> None:
    """On a model that knows a small world: the new answers come, and the report says what happened."""
    first, second = testbed_bench.requests[:6], testbed_bench.requests[6:]
    editor = testbed_bench.editor()
    report = editor.edit(first)
    assert len(report.requests) == 6
    assert len(report.not_edited) <= 1, [r.verdict for r in report.requests]
    taken = next(request for request in report.requests if request.edited)
    wanted = first[taken.index]
    assert taken.answer_before.strip().startswith(str(wanted.target_old))
    assert taken.answer_after.strip().startswith(wanted.target_new)
    assert taken.value_probability > 0.5
    assert 0 < taken.residual < taken.inconsistency
    assert 0 <= taken.subspace_conflict <= 1
    assert 0 <= taken.preserved_conflict <= 1
    assert taken.prior_conflict is None
    assert taken.verdict == "edited"
    later = editor.edit([*second, wanted.model_copy(update={"target_new": str(wanted.target_old)})])
    assert later.requests[-1].prior_conflict == pytest.approx(1, abs=1e-4)
    assert later.requests[-1].prior_conflict_with == first[taken.index].name(taken.index)
    assert 0 <= later.layers[0].prior_weight < 1
    known = editor.edit([wanted.model_copy(update={"target_new": str(wanted.target_old)})]).requests[0]
    assert known.verdict == "known already"


CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}It is known that {{ message['content'] }}"
    "{% else %} {{ message['content'] }}{% endif %}{% endfor %}"
)


def test_through_a_chat_template_an_edit_is_taken_where_prompts_are_asked_through_it(
    testbed_bench: TestbedBench,
) -> None:
    tokenizer = copy.deepcopy(testbed_bench.tokenizer)
    tokenizer.chat_template = CHAT
    bench, facts = replace(testbed_bench, tokenizer=tokenizer), testbed_bench.requests[:5]
    pairs = [(request.prompt, request.target_new) for request in facts]
    log_probs = {}
    for chat_template in (False, True):
        editor = bench.editor(values=replace(bench.settings.values, chat_template=chat_template))
        report = editor.edit(facts)
        scores = score_targets(bench.model, tokenizer, pairs, chat_template=chat_template)
        assert [request.edited for request in report.requests] == [score.top1 for score in scores]
        assert len(report.not_edited) < len(facts)
        through_template = score_targets(bench.model, tokenizer, pairs, chat_template=True)
        log_probs[chat_template] = sum(score.log_prob for score in through_template)
        editor.revert_all()
    assert log_probs[True] > log_probs[False]


def test_editing_twice_changes_little(testbed_bench: TestbedBench) -> None:
    """The second time there is little left to do: the residual is what the ridge left of it."""
    subject = testbed_bench.editor(smoothing=None, search=None, ridge=0.01)
    weights = [testbed_bench.weight()]
    for _ in range(2):
        subject.edit(testbed_bench.requests[:4], answers=False)
        weights.append(testbed_bench.weight())
    assert (weights[2] - weights[1]).norm() < 0.4 * (weights[1] - weights[0]).norm()


def test_half_precision_weights(testbed_bench: TestbedBench) -> None:
    testbed_bench.model.bfloat16()
    before = testbed_bench.weights()
    editor = testbed_bench.editor()
    report = editor.edit(testbed_bench.requests[:4])
    assert len(report.not_edited) < 4
    assert testbed_bench.model.model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16
    editor.revert_all()
    assert testbed_bench.holds(before)


def test_two_editors_of_two_models_do_not_mix(llama_bench: Bench) -> None:
    other = llama_bench.copy()
    alone = llama_bench.copy()
    first, second = llama_bench.editor(), other.editor()
    first.edit(REQUESTS)
    second.edit(LATER)
    alone.editor().edit(LATER)
    ours, expected = other.weights(), alone.weights()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_the_mode_of_the_model_and_of_autograd_change_nothing(llama_bench: Bench) -> None:
    """Training, checkpointing, frozen parameters, no padding token, a caller's inference mode: as it was afterwards."""
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model), tokenizer=copy.deepcopy(llama_bench.tokenizer))
    expected = llama_bench.editor(QUICK)
    other.model.train()
    checkpointing.enable(other.model)
    other.model.model.embed_tokens.weight.requires_grad_(False)
    other.tokenizer.pad_token = None
    other.tokenizer.padding_side = "left"
    subject = other.editor(QUICK)
    with torch.inference_mode():
        assert subject.edit(REQUESTS) == expected.edit(REQUESTS)
    assert subject.edit(LATER, answers=False) == expected.edit(LATER, answers=False)
    assert llama_bench.holds(other.weights())
    assert all(module.training for module in other.model.modules())
    assert [name for name, p in other.model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    assert all(parameter.grad is None for parameter in other.model.parameters())


def test_diagnose_changes_nothing_and_agrees_with_the_edit(llama_bench: Bench) -> None:
    subject = llama_bench.editor()
    subject.edit(REQUESTS[:1], answers=False)
    before, state = llama_bench.weights(), subject.state
    diagnosis = subject.diagnose(REQUESTS[1:], values=True)
    assert subject.state is state
    assert llama_bench.holds(before)
    report = subject.edit(REQUESTS[1:], answers=False)
    for row, request in zip(diagnosis.rows(), report.requests, strict=True):
        for name in ("preserved_conflict", "subspace_conflict", "prior_conflict", "batch_conflict"):
            assert row[name] == pytest.approx(getattr(request, name))
        assert row["prior_conflict_with"] == request.prior_conflict_with
        assert row["value_probability"] == pytest.approx(request.value_probability)
        assert row["inconsistency"] == pytest.approx(request.inconsistency, rel=1e-5)


# "Smoothed": whatever the scores are, t = 1 is kept.
@pytest.mark.parametrize(
    "smoothing",
    [None, SmoothingSettings(steps=4, share=0.4, over_median=0, tolerance=1e9, selection="early_stop")],
    ids=["plain", "smoothed"],
)
def test_residuals_are_those_that_an_edit_meets_at_the_layer(llama_bench: Bench, smoothing: Any) -> None:
    editor = llama_bench.editor(QUICK, smoothing=smoothing)
    editor.edit(REQUESTS[:1], answers=False)
    state, before = editor.state, llama_bench.weights()
    requests = [*REQUESTS[1:], *LATER]
    first, second = editor.residuals(requests, 1), editor.residuals(requests, 2)
    assert editor.state is state
    assert llama_bench.holds(before)
    # before anything is edited they are the inconsistencies
    rows = editor.diagnose(requests, values=True).rows()
    assert first == pytest.approx([row["inconsistency"] for row in rows], rel=1e-4)
    assert second != pytest.approx(first, rel=1e-4)
    # the last layer's update takes all that is missing, less what was smoothed
    report = editor.edit(requests, name="more", answers=False)
    smoothed = torch.tensor([request.smoothing[1] for request in report.requests])
    assert bool(smoothed.any()) == (smoothing is not None)
    taken = editor.state.batch("more").layers[1].left.norm(dim=0) / (1 - smoothed)
    assert taken.tolist() == pytest.approx(second, rel=1e-4)
    for position in (0, 3):
        with pytest.raises(SettingError, match=f"position is {position}: it must be 1 to 2"):
            editor.residuals(requests, position)


def test_a_failure_while_residuals_are_measured_changes_nothing(llama_bench: Bench, monkeypatch: Any) -> None:
    editor = llama_bench.editor(QUICK)
    before, edit_layer = llama_bench.weights(), BatchEdit.edit_layer

    def interrupted(*arguments: Any) -> Any:
        edit_layer(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchEdit, "edit_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        editor.residuals(REQUESTS[:2], 2)
    assert llama_bench.holds(before)


def test_refusals(llama_bench: Bench, gpt2_bench: Bench) -> None:
    subject = llama_bench.editor()
    subject.edit(REQUESTS[:1], name="mine", answers=False)
    with pytest.raises(StateError, match="there is a batch 'mine' already"):
        subject.edit(REQUESTS[1:], name="mine")
    with pytest.raises(StateError, match=r"no batch 'other' in force; there are: mine"):
        subject.revert("other")
    with pytest.raises(StatisticsError, match="says nothing about another"):
        AlphaEditor(llama_bench.model, llama_bench.tokenizer, gpt2_bench.statistics, SETTINGS)
    foreign = AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, SETTINGS, state=subject.state).state
    with pytest.raises(StateError, match="made on another model"):
        AlphaEditor(gpt2(10).float(), gpt2_bench.tokenizer, None, SETTINGS, state=foreign)


@pytest.mark.parametrize("name", ["", " ", 7])
def test_a_batch_needs_a_name_that_can_be_asked_for(llama_bench: Bench, name: Any) -> None:
    with pytest.raises(SettingError, match="name is"):
        llama_bench.editor(QUICK).edit(REQUESTS[:1], name=name, answers=False)


def test_an_architecture_of_another_model_is_refused(llama_bench: Bench) -> None:
    parts = find_architecture(copy.deepcopy(llama_bench.model))
    with pytest.raises(SettingError, match="architecture is of another model"):
        AlphaEditor(llama_bench.model, llama_bench.tokenizer, llama_bench.statistics, QUICK, architecture=parts)
