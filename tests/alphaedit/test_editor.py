"""The editor: equal to the paper's algorithm with d x d matrices, whole or not at all, and back again exactly."""

from __future__ import annotations

import copy
import signal
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from corsa_plugins.alphaedit import AlphaEditor, EditError, SearchSettings, SmoothingSettings, StateError, editor
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import is_smoothed
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.data.requests import EditRequest, Probe, RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.asking import score_targets
from tests.fixtures.alphaedit import LATER, REQUESTS, SETTINGS, Bench, TestbedBench, gpt2
from tests.oracles import alphaedit as oracle

EARLY_STOP = SmoothingSettings(steps=4, share=0.4, tolerance=0.01)


class Plain:
    """Algorithm 1 on a model, layer by layer, with d x d matrices and a projector from an SVD."""

    def __init__(self, bench: Bench, settings: Any) -> None:
        self.bench, self.settings = bench, settings
        self.parts = find_architecture(bench.model)
        self.prior: dict[int, list[np.ndarray]] = {layer: [] for layer in settings.layers}
        self.contexts: Any = None
        self.steps: list[int] = []

    def edit(self, requests: list[EditRequest]) -> None:
        model, tokenizer, settings = self.bench.model, self.bench.tokenizer, self.settings
        contexts = self.contexts = self.contexts or editor.generate_contexts(model, tokenizer, n=2, length=4)
        last = settings.layers[-1]
        z = find_values(model, tokenizer, requests, last, contexts, settings.values).vectors.numpy()
        for place, layer in enumerate(settings.layers):
            linear = self.parts.ffn(layer).down
            K1 = request_keys(model, tokenizer, requests, [layer], contexts)[layer].numpy()
            left = z - request_outputs(model, tokenizer, requests, last).numpy()
            R = left / (len(settings.layers) - place)
            moment = self.bench.statistics.moment(layer).numpy()
            U, S, _ = np.linalg.svd(moment)
            U = U[:, np.argsort(S, kind="stable")]
            n_null = int(settings.null_space.value * len(S) + 0.5)
            P = oracle.projector(U, range(n_null))
            ridge = settings.ridge
            if settings.ridge_unit == "relative":
                ridge *= np.mean([np.linalg.norm(P @ K1[:, i]) ** 2 for i in range(K1.shape[1])])
            Kp = np.concatenate([np.zeros((len(P), 0)), *self.prior[layer]], axis=1)
            W0 = linear.weight.detach().clone()
            delta = self._delta(requests, place, W0, K1, R, left, Kp, U, n_null, P, ridge)
            self._put(linear, W0, delta)
        for layer in settings.layers:
            self.prior[layer].append(request_keys(model, tokenizer, requests, [layer], contexts)[layer].numpy())

    def _delta(
        self,
        requests: Any,
        place: int,
        W0: Tensor,
        K1: Any,
        R: Any,
        left: Any,
        Kp: Any,
        U: Any,
        n_null: int,
        P: Any,
        ridge: float,
    ) -> np.ndarray:
        settings = self.settings
        linear = self.parts.ffn(settings.layers[place]).down
        W = W0.numpy()
        beta = settings.prior_weight * (place + 1 if settings.prior_weight_by_layer else 1)
        if settings.search is None and settings.smoothing is None and not settings.conflict_weights:
            return oracle.alphaedit(R, K1, Kp, P, ridge)
        norms = torch.tensor(np.linalg.norm(left, axis=0))
        chosen = is_smoothed(norms, settings.smoothing).tolist()
        tau = min([float("inf"), *(n for n, c in zip(np.linalg.norm(R, axis=0), chosen, strict=True) if c)]) * (
            1 - 1e-9
        )
        pairs = []
        for request in requests:
            prompts = request.validation_prompts or [c.format(request.prompt) for c in self.contexts[1:]]
            pairs += [(prompt, request.target_new) for prompt in prompts]

        def score(delta: np.ndarray) -> float:
            self._put(linear, W0, delta)
            found = score_targets(self.bench.model, self.bench.tokenizer, pairs)
            return float(np.mean([np.exp(one.log_prob / one.n_tokens) for one in found]))

        delta, t = oracle.algorithm_1(
            W, K1, W @ K1 + R, Kp, U, n_null, settings.smoothing.steps, tau, settings.search.threshold,
            settings.smoothing.tolerance, ridge, beta, score,
        )  # fmt: skip
        self.steps.append(t)
        return delta

    @staticmethod
    @torch.no_grad()
    def _put(linear: Any, W0: Tensor, delta: np.ndarray) -> None:
        linear.weight.copy_(W0 + torch.tensor(delta))


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, smoothing=EARLY_STOP),
        replace(SETTINGS, smoothing=EARLY_STOP, prior_weight_by_layer=True, prior_weight=50.0),
        replace(SETTINGS, smoothing=EARLY_STOP, ridge=2.0, ridge_unit="absolute", layers=(1,)),
        SETTINGS.alphaedit(),
        replace(SETTINGS, ridge=2.0, ridge_unit="absolute").alphaedit(),
    ],
    ids=["AlphaEdit+", "beta by layer", "one layer", "AlphaEdit", "AlphaEdit, absolute"],
)
def test_equals_algorithm_1(gpt2_bench: Bench, settings: Any) -> None:
    """Two batches one after the other, every update relative to its own size."""
    plain_bench = replace(gpt2_bench, model=copy.deepcopy(gpt2_bench.model))
    plain, product = Plain(plain_bench, settings), gpt2_bench.editor(settings)
    for requests in (REQUESTS, LATER):
        before = gpt2_bench.weights()
        plain.edit(requests)
        report = product.edit(requests)
        expected = dict(plain_bench.model.named_parameters())
        for name, weight in gpt2_bench.model.named_parameters():
            moved = expected[name].detach() - before[name]
            if ".mlp.c_proj.weight" in name and int(name.split(".")[2]) in settings.layers:
                assert moved.norm() > 0
                assert (weight - expected[name]).norm() <= 1e-6 * moved.norm()
            else:
                assert torch.equal(weight, before[name])
        if settings.smoothing is not None:
            assert [layer.smoothing_step for layer in report.layers] == plain.steps[-len(settings.layers) :]
    if settings.search is not None:
        assert any(layer.added for layer in report.layers)


def test_an_edit_is_taken(testbed_bench: TestbedBench) -> None:
    """On a model that knows a small world: the new answers come, and the report says what happened."""
    first, second = testbed_bench.requests[:6], testbed_bench.requests[6:]
    editor = testbed_bench.editor()
    report = editor.edit(first)
    assert len(report.requests) == 6
    assert len(report.not_edited) <= 1, [r.verdict for r in report.requests]
    one = next(request for request in report.requests if request.edited)
    asked = first[one.index]
    assert one.answer_before.strip().startswith(str(asked.target_old))
    assert one.answer_after.strip().startswith(asked.target_new)
    assert one.value_probability > 0.5
    assert 0 < one.residual < one.inconsistency
    assert 0 <= one.subspace_conflict <= 1
    assert 0 <= one.preserved_conflict <= 1
    assert one.prior_conflict is None
    assert one.verdict == "edited"
    later = editor.edit([*second, asked.model_copy(update={"target_new": str(asked.target_old)})])
    assert later.requests[-1].prior_conflict == pytest.approx(1, abs=1e-4)
    assert later.requests[-1].prior_conflict_with == first[one.index].name(one.index)
    assert 0 <= later.layers[0].prior_weight < 1
    known = editor.edit([asked.model_copy(update={"target_new": str(asked.target_old)})]).requests[0]
    assert known.verdict == "known already"


def test_a_verdict_says_why_an_edit_failed(testbed_bench: TestbedBench) -> None:
    requests = testbed_bench.requests[:3]
    short = replace(testbed_bench.settings.values, steps=2)
    hopeless = testbed_bench.editor(values=short)
    assert all(r.verdict.startswith("out of reach") for r in hopeless.edit(requests).requests)
    hopeless.revert_all()
    held_back = testbed_bench.editor(ridge=1e6, search=None, smoothing=None).edit(requests)
    reached = [r for r in held_back.requests if r.value_probability >= 0.5]
    assert reached
    assert all(r.verdict.startswith("not taken: 100 % of its residual remains") for r in reached)


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
    assert all(torch.equal(weight, before[name]) for name, weight in testbed_bench.weights().items())


@pytest.mark.parametrize("order", list(permutations(("1", "2", "3"))))
def test_reverting_in_any_order_restores_exactly(llama_bench: Bench, order: tuple[str, ...]) -> None:
    before = llama_bench.weights()
    editor = llama_bench.editor(n_contexts=0)
    for request in REQUESTS:
        editor.edit([request], answers=False)
    middle = llama_bench.weights()
    assert not torch.equal(middle["model.layers.0.mlp.down_proj.weight"], before["model.layers.0.mlp.down_proj.weight"])
    for left, name in zip((2, 1, 0), order, strict=True):
        editor.revert(name)
        assert editor.state.prior_keys(0, 64).shape == (64, left)
        assert name not in [batch.name for batch in editor.state.batches]
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


def test_what_remains_after_a_revert_is_as_if_summed_anew(llama_bench: Bench) -> None:
    editor = llama_bench.editor(n_contexts=0)
    for request in REQUESTS:
        editor.edit([request], answers=False)
    editor.revert("2")
    state = editor.state
    for layer in (0, 1):
        expected = state.originals[layer].double()
        for batch in state.batches:
            expected = expected + batch.layers[layer].left.double() @ batch.layers[layer].right.double().T
        weight = llama_bench.model.model.layers[layer].mlp.down_proj.weight
        assert torch.equal(weight, expected.float())


STAGES = [
    "generate_contexts",
    "score_targets",
    "generate_answers",
    "find_values",
    "request_keys",
    "request_outputs",
    "prior_weights",
    "solve",
    "write_weight",
    "select_smoothing",
    "verdict",
    "EditBatch",
]


QUICK = replace(SETTINGS, values=replace(SETTINGS.values, steps=3), n_contexts=1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_at_any_stage_leaves_everything_as_it_was(
    llama_bench: Bench, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Each stage fails at its first call, and is interrupted at its last one."""
    subject = llama_bench.editor(QUICK)
    counted = _calls(llama_bench, stage)
    if stage != "generate_contexts":
        subject.edit(REQUESTS[:1], answers=False)
    before, state = llama_bench.weights(), subject.state
    for fail_at, error in ((1, RuntimeError), (counted, KeyboardInterrupt)):
        calls = 0
        original = getattr(editor, stage)

        def fail(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:  # noqa: B023
                raise error("injected")  # noqa: B023
            return original(*args, **kwargs)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(editor, stage, fail)
            with pytest.raises(error, match="injected"):
                subject.edit(REQUESTS[1:])
        assert subject.state is state
        assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in llama_bench.model.modules())
    subject.edit(REQUESTS[1:], answers=False)


def _calls(bench: Bench, stage: str) -> int:
    """How often an edit of the last two requests calls a stage."""
    subject = replace(bench, model=copy.deepcopy(bench.model)).editor(QUICK)
    original, calls = getattr(editor, stage), 0

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editor, stage, count)
        subject.edit(REQUESTS[1:])
    assert calls
    return calls


def test_ctrl_c_while_weights_are_put_back(llama_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = llama_bench.weights()
    subject = llama_bench.editor()
    original = AlphaEditor._put_back
    pressed = []

    def interrupted(self: AlphaEditor, weights: Any) -> None:
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        original(self, weights)

    def fail(*args: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(AlphaEditor, "_put_back", interrupted)
    monkeypatch.setattr(editor, "verdict", fail)
    # A process in the background may have been started to ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(RuntimeError, match="injected"):
            subject.edit(REQUESTS)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert pressed
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


def test_nan_is_named_and_nothing_changed(llama_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = llama_bench.editor()
    original = editor.request_outputs

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        found = original(*args, **kwargs)
        found[0, 1] = float("nan")
        return found

    before = llama_bench.weights()
    monkeypatch.setattr(editor, "request_outputs", broken)
    with pytest.raises(EditError, match=r"layer 0: NaN or infinity in the residuals of case 'berg'"):
        subject.edit(REQUESTS)
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


def test_test_prompts_change_no_weight(llama_bench: Bench) -> None:
    """Paraphrases, neighbourhood and portability are for testing: whatever they hold, the weights are the same."""
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    probes = (Probe(prompt="Rome is the capital of", answer="France"), Probe(prompt="Oslo is in", answer="Spain"))
    asked = [
        request.model_copy(
            update={"paraphrases": ("Name the capital of the French",), "neighborhood": probes, "portability": probes}
        )
        for request in REQUESTS
    ]
    first, second = llama_bench.editor().edit(REQUESTS), other.editor().edit(asked)
    assert any(layer.validation_scores for layer in first.layers)
    assert first == second
    ours, theirs = llama_bench.weights(), other.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_validation_prompts_do_matter(gpt2_bench: Bench) -> None:
    """Or the test above would say nothing: what is validated on decides between smoothed targets."""
    seen: list[list[tuple[str, str]]] = []
    subject = gpt2_bench.editor()
    original = subject._score
    subject._score = lambda pairs: seen.append(pairs) or original(pairs)  # type: ignore[method-assign]
    subject.edit(REQUESTS, keep=[Probe(prompt="Rome is in", answer="Italy")])
    (pairs,) = {tuple(pairs) for pairs in seen}
    assert ("Spain has the capital", "Kuala Lumpur") in pairs
    assert ("Rome is in", "Italy") in pairs
    assert sum(answer == "Rome" for _, answer in pairs) == 2  # behind the two generated contexts
    assert all(prompt != REQUESTS[0].prompt for prompt, _ in pairs)


def test_order_of_requests_does_not_matter(gpt2_bench: Bench) -> None:
    other = replace(gpt2_bench, model=copy.deepcopy(gpt2_bench.model))
    settings = replace(SETTINGS, search=SearchSettings(threshold=0.02))
    first, second = gpt2_bench.editor(settings).edit(REQUESTS), other.editor(settings).edit(REQUESTS[::-1])
    ours, theirs = gpt2_bench.weights(), other.weights()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-8, atol=1e-10)
    for a, b in zip(first.requests, second.requests[::-1], strict=True):
        assert a.residual == pytest.approx(b.residual)
        assert a.answer_after == b.answer_after


def test_restored_weights_are_noticed(llama_bench: Bench) -> None:
    """Someone who puts the weights back has taken the edit back: the next one starts without its keys."""
    subject = llama_bench.editor()
    subject.edit(REQUESTS[:1])
    between = llama_bench.weights()
    subject.edit(REQUESTS[1:])
    _load(llama_bench.model, between)
    report = subject.edit(LATER, name="later")
    assert [batch.name for batch in subject.state.batches] == ["1", "later"]
    assert report.requests[0].prior_conflict is not None
    subject.revert_all()
    assert not subject.state.batches


def test_weights_changed_by_others_are_refused(llama_bench: Bench) -> None:
    subject = llama_bench.editor()
    subject.edit(REQUESTS)
    with torch.no_grad():
        llama_bench.model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    changed = llama_bench.weights()
    for action in (lambda: subject.edit(LATER), lambda: subject.revert("1"), subject.revert_all):
        with pytest.raises(StateError, match=r"model\.layers\.1\.mlp\.down_proj.* something else changed them"):
            action()
    assert all(torch.equal(weight, changed[name]) for name, weight in llama_bench.weights().items())


def test_two_editors_of_two_models_do_not_mix(llama_bench: Bench) -> None:
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    alone = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    first, second = llama_bench.editor(), other.editor()
    first.edit(REQUESTS)
    second.edit(LATER)
    alone.editor().edit(LATER)
    ours, expected = other.weights(), alone.weights()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_refusals(llama_bench: Bench, gpt2_bench: Bench) -> None:
    subject = llama_bench.editor()
    with pytest.raises(RequestError, match="no edit requests"):
        subject.edit([])
    with pytest.raises(RequestError, match=r"case 'x'.*has no subject"):
        subject.edit([EditRequest(prompt="a b", target_new="c", case_id="x")])
    with pytest.raises(RequestError, match=r"keep\[0\].*has no answer"):
        subject.edit(REQUESTS, keep=[Probe(prompt="Rome is in")])
    subject.edit(REQUESTS[:1], name="mine", answers=False)
    with pytest.raises(StateError, match="there is a batch 'mine' already"):
        subject.edit(REQUESTS[1:], name="mine")
    with pytest.raises(StateError, match=r"no batch 'other' in force; there are: mine"):
        subject.revert("other")
    with pytest.raises(SettingError, match="the model has 3 blocks"):
        llama_bench.editor(layers=(0, 7))
    with pytest.raises(StatisticsError, match="says nothing about another"):
        AlphaEditor(llama_bench.model, llama_bench.tokenizer, gpt2_bench.statistics, SETTINGS)
    with pytest.raises(SettingError, match="no statistics"):
        AlphaEditor(gpt2_bench.model, gpt2_bench.tokenizer, None, SETTINGS).edit(REQUESTS)
    foreign = AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, SETTINGS, state=subject.state).state
    with pytest.raises(StateError, match="made on another model"):
        AlphaEditor(gpt2(10).float(), gpt2_bench.tokenizer, None, SETTINGS, state=foreign)


def test_diagnose_changes_nothing_and_agrees_with_the_edit(llama_bench: Bench) -> None:
    subject = llama_bench.editor()
    subject.edit(REQUESTS[:1], answers=False)
    before, state = llama_bench.weights(), subject.state
    diagnosis = subject.diagnose(REQUESTS[1:], values=True)
    assert subject.state is state
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())
    report = subject.edit(REQUESTS[1:], answers=False)
    for row, request in zip(diagnosis.rows(), report.requests, strict=True):
        for name in ("preserved_conflict", "subspace_conflict", "prior_conflict", "batch_conflict"):
            assert row[name] == pytest.approx(getattr(request, name))
        assert row["prior_conflict_with"] == request.prior_conflict_with
        assert row["value_probability"] == pytest.approx(request.value_probability)
        assert row["inconsistency"] == pytest.approx(request.inconsistency, rel=1e-5)


def test_applying_elsewhere_may_round_to_other_bits(llama_bench: Bench) -> None:
    """Another machine sums in another order: what was applied here is what the next edit finds here."""
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    before = other.weights()
    subject = llama_bench.editor(QUICK)
    subject.edit(REQUESTS[:1], answers=False)
    subject.edit(REQUESTS[1:], answers=False)
    elsewhere = replace(subject.state, marks=(*subject.state.marks[:-1], dict.fromkeys((0, 1), "other bits")))
    there = AlphaEditor(other.model, other.tokenizer, other.statistics, QUICK, state=elsewhere)
    there.apply()
    there.edit(LATER, answers=False)
    assert [batch.name for batch in there.state.batches] == ["1", "2", "3"]
    for name in ("1", "3", "2"):
        there.revert(name)
    assert all(torch.equal(weight, before[name]) for name, weight in other.weights().items())


def test_a_state_that_was_not_applied_is_forgotten_aloud(llama_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    subject = llama_bench.editor(QUICK)
    subject.edit(REQUESTS[:1], name="first", answers=False)
    there = AlphaEditor(other.model, other.tokenizer, other.statistics, QUICK, state=subject.state)
    there.edit(REQUESTS[1:], answers=False)
    assert [batch.name for batch in there.state.batches] == ["1"]
    (record,) = [record for record in caplog.records if "forgotten" in record.message]
    assert record.levelname == "WARNING"
    assert "first" in record.message


def test_layers_may_differ_between_batches(llama_bench: Bench) -> None:
    """Each layer has its own earlier edits; what one batch left alone is the original of that layer for the next."""
    before = llama_bench.weights()
    subject = llama_bench.editor(replace(QUICK, layers=(0,)))
    subject.edit(REQUESTS[:1], answers=False)
    subject.settings = replace(QUICK, layers=(0, 1))
    subject.edit([REQUESTS[1].model_copy(update={"case_id": None})], answers=False)
    subject.settings = replace(QUICK, layers=(1,))
    state = subject.state
    assert [state.prior_keys(layer, 64).shape[1] for layer in (0, 1)] == [2, 1]
    assert state.prior_names(0) == [REQUESTS[0].name(), "request 1 ('Anna Berg was born in')"]
    assert state.prior_names(1) == ["request 1 ('Anna Berg was born in')"]
    now = llama_bench.weights()
    _load(llama_bench.model, before)
    assert state.in_force(subject._maps) == 0  # also at the layer that the first batch did not know
    _load(llama_bench.model, now)
    layer_0 = llama_bench.weights()["model.layers.0.mlp.down_proj.weight"]
    report = subject.edit(LATER, answers=False)
    assert [layer.layer for layer in report.layers] == [1]
    assert torch.equal(llama_bench.weights()["model.layers.0.mlp.down_proj.weight"], layer_0)
    for name in ("2", "1", "3"):
        subject.revert(name)
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())
    with pytest.raises(SettingError, match="the model has 3 blocks"):
        subject.settings = replace(QUICK, layers=(3,))
    assert subject.settings.layers == (1,)


def test_a_weight_of_two_blocks_is_refused(llama_bench: Bench) -> None:
    blocks = llama_bench.model.model.layers
    blocks[1].mlp.down_proj.weight = blocks[0].mlp.down_proj.weight
    for layers in ((0, 1), (1,)):
        with pytest.raises(SettingError, match=r"layers\.0\.mlp\.down_proj\.weight and .* are one weight"):
            AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, replace(QUICK, layers=layers))


def test_an_architecture_of_another_model_is_refused(llama_bench: Bench) -> None:
    parts = find_architecture(copy.deepcopy(llama_bench.model))
    with pytest.raises(SettingError, match="architecture is of another model"):
        AlphaEditor(llama_bench.model, llama_bench.tokenizer, llama_bench.statistics, QUICK, architecture=parts)


@pytest.mark.parametrize("smoothing", [None, SETTINGS.smoothing], ids=["plain", "smoothed"])
def test_an_update_beyond_half_precision_is_an_error(
    llama_bench: Bench, monkeypatch: pytest.MonkeyPatch, smoothing: Any
) -> None:
    """The factors fit float32; their product does not fit the weights."""
    llama_bench.model.half()
    before = llama_bench.weights()
    subject = llama_bench.editor(replace(QUICK, layers=(1,), smoothing=smoothing))
    original = editor.solve

    def huge(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return replace(found, coefficients=found.coefficients * 1e7)

    monkeypatch.setattr(editor, "solve", huge)
    with pytest.raises(EditError, match=r"layer 1: the edited weight holds NaN or infinity in torch.float16"):
        subject.edit(REQUESTS, answers=False)
    assert not subject.state.batches
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


@pytest.mark.parametrize(("stage", "what"), [("request_outputs", "outputs"), ("request_keys", "keys")])
def test_nan_after_the_edit_is_an_error_too(
    llama_bench: Bench, monkeypatch: pytest.MonkeyPatch, stage: str, what: str
) -> None:
    """It would be recorded as a key of an edit in force, and spoil every later edit."""
    last, calls, original = _calls(llama_bench, stage), 0, getattr(editor, stage)

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        found = original(*args, **kwargs)
        if calls == last:
            (found if isinstance(found, Tensor) else found[1])[0, 1] = float("inf")
        return found

    subject = llama_bench.editor(QUICK)
    before = llama_bench.weights()
    monkeypatch.setattr(editor, stage, broken)
    with pytest.raises(EditError, match=rf"layer 1: NaN or infinity in the {what} after the edit of case 'spain'"):
        subject.edit(REQUESTS[1:])
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


def test_the_mode_of_the_model_and_of_autograd_change_nothing(llama_bench: Bench) -> None:
    """Training, checkpointing, frozen parameters, no padding token, a caller's inference mode: as it was afterwards."""
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model), tokenizer=copy.deepcopy(llama_bench.tokenizer))
    expected = llama_bench.editor(QUICK)
    other.model.train()
    other.model.gradient_checkpointing_enable()
    other.model.model.embed_tokens.weight.requires_grad_(False)
    other.tokenizer.pad_token = None
    other.tokenizer.padding_side = "left"
    subject = other.editor(QUICK)
    with torch.inference_mode():
        assert subject.edit(REQUESTS) == expected.edit(REQUESTS)
    assert subject.edit(LATER, answers=False) == expected.edit(LATER, answers=False)
    ours, theirs = llama_bench.weights(), other.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(module.training for module in other.model.modules())
    assert [name for name, p in other.model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    assert all(parameter.grad is None for parameter in other.model.parameters())


def test_requests_that_are_alike(llama_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The same request twice shares one key, and so does a contradiction; without contexts the prompt validates."""
    subject = llama_bench.editor(replace(QUICK, n_contexts=0, smoothing=replace(SETTINGS.smoothing, share=1.0)))
    validated: list[Any] = []
    original = subject._score
    subject._score = lambda pairs: validated.append(pairs) or original(pairs)  # type: ignore[method-assign]
    twice = subject.edit([REQUESTS[0], REQUESTS[0]], answers=False)
    assert twice.requests[0].residual == pytest.approx(twice.requests[1].residual, rel=1e-4)
    assert [request.batch_conflict for request in twice.requests] == pytest.approx([1, 1])
    assert validated[0] == [(REQUESTS[0].prompt, REQUESTS[0].target_new)] * 2
    assert subject.state.contexts == ("{}",)
    subject.revert_all()
    against = REQUESTS[0].model_copy(update={"target_new": "Oslo", "case_id": None})
    report = subject.edit([REQUESTS[0], against], answers=False)
    assert "requests 0, 1 contradict each other" in caplog.text
    assert all(request.residual > 0 for request in report.requests)
    assert report.requests[0].batch_conflict_with == "request 1 ('The capital of France is')"


def test_precisions_of_factors_may_differ_between_batches(llama_bench: Bench) -> None:
    before = llama_bench.weights()
    subject = llama_bench.editor(replace(QUICK, dtype="float64"))
    subject.edit(REQUESTS[:1], answers=False)
    subject.settings = replace(QUICK, prior_weight=0)
    subject.edit(REQUESTS[1:], answers=False)
    factors = [batch.layers[1].left.dtype for batch in subject.state.batches]
    assert factors == [torch.float64, torch.float32]
    subject.edit(LATER, answers=False)
    subject.revert_all()
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


@pytest.mark.parametrize("name", ["", " ", 7])
def test_a_batch_needs_a_name_that_can_be_asked_for(llama_bench: Bench, name: Any) -> None:
    with pytest.raises(SettingError, match="name is"):
        llama_bench.editor(QUICK).edit(REQUESTS[:1], name=name, answers=False)


@pytest.mark.parametrize("fact_token", ["subject_first", "last"])
def test_keys_and_residuals_are_read_where_the_value_is(llama_bench: Bench, fact_token: Any) -> None:
    other = copy.deepcopy(llama_bench.model)
    settings = replace(QUICK, layers=(1,), values=replace(QUICK.values, fact_token=fact_token))
    subject = llama_bench.editor(settings)
    report = subject.edit(REQUESTS, answers=False)
    given = llama_bench.tokenizer, REQUESTS
    contexts = subject.state.contexts
    keys = request_keys(llama_bench.model, *given, [1], contexts, fact_token=fact_token)[1]
    assert torch.allclose(subject.state.prior_keys(1, 64), keys, atol=1e-6)
    wanted = find_values(other, *given, 1, contexts, settings.values).vectors
    left = wanted - request_outputs(llama_bench.model, *given, 1, fact_token=fact_token)
    assert [request.residual for request in report.requests] == pytest.approx(left.norm(dim=0).tolist(), rel=1e-4)


def test_weights_from_before_a_revert_are_not_taken_for_others(llama_bench: Bench) -> None:
    """Batches 1 and 2 were in force then: as many as are left now, and not the same."""
    subject = llama_bench.editor(QUICK)
    subject.edit(REQUESTS[:1], answers=False)
    subject.edit(REQUESTS[1:2], answers=False)
    both = llama_bench.weights()
    subject.edit(REQUESTS[2:], answers=False)
    subject.revert("1")
    after = llama_bench.weights()
    _load(llama_bench.model, both)
    for action in (lambda: subject.edit(LATER, answers=False), lambda: subject.revert("2"), subject.apply):
        with pytest.raises(StateError, match="something else changed them"):
            action()
    _load(llama_bench.model, after)
    subject.revert("3")
    assert [batch.name for batch in subject.state.batches] == ["2"]


def test_an_edit_that_changes_no_bit_is_in_force_all_the_same(gpt2_bench: Bench) -> None:
    """Its weights are those from before it; that is not someone taking it back."""
    gpt2_bench.model.half()
    before = gpt2_bench.weights()
    subject = gpt2_bench.editor(replace(QUICK, ridge=1e30, ridge_unit="absolute", search=None))
    for requests in (REQUESTS, LATER):
        subject.edit(requests, answers=False)
    assert all(torch.equal(weight, before[name]) for name, weight in gpt2_bench.weights().items())
    assert [batch.name for batch in subject.state.batches] == ["1", "2"]
    subject.revert("1")
    assert [batch.name for batch in subject.state.batches] == ["2"]
    subject.edit(REQUESTS, answers=False)
    assert [batch.name for batch in subject.state.batches] == ["2", "3"]
    subject.revert("2")
    subject.edit(LATER, answers=False)  # "2" would be the number, and "3" is taken
    assert [batch.name for batch in subject.state.batches] == ["3", "2"]


def test_factors_are_kept_as_precisely_as_the_weights(gpt2_bench: Bench, llama_bench: Bench) -> None:
    for bench, dtype in ((gpt2_bench, torch.float64), (llama_bench, torch.float32)):
        subject = bench.editor(QUICK)
        subject.edit(REQUESTS, answers=False)
        (update,) = subject.state.updates(1)
        assert {update.keys.dtype, update.left.dtype, update.right.dtype} == {dtype}


class Pressed(AlphaEditor):
    """Ctrl-C comes right behind the one assignment that makes an edit."""

    armed = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_state" and self.armed:
            raise KeyboardInterrupt


def test_ctrl_c_after_the_state_is_replaced(llama_bench: Bench) -> None:
    """Weights and state are those of the edit then, and go on as any other."""
    before = llama_bench.weights()
    subject = Pressed(llama_bench.model, llama_bench.tokenizer, llama_bench.statistics, QUICK)
    kept: list[list[str]] = [["1"], ["1", "2"], ["2"], []]
    actions: list[Any] = [
        lambda: subject.edit(REQUESTS[:1], answers=False),
        lambda: subject.edit(REQUESTS[1:], answers=False),
        lambda: subject.revert("1"),
        subject.revert_all,
    ]
    for action, names in zip(actions, kept, strict=True):
        subject.armed = True
        with pytest.raises(KeyboardInterrupt):
            action()
        subject.armed = False
        assert [batch.name for batch in subject.state.batches] == names
        assert subject.state.in_force(subject._maps) == len(names)
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


def _of_length(bench: Bench, n: int) -> str:
    prompt = "The capital of France is"
    while len(bench.tokenizer(prompt)["input_ids"]) < n:
        prompt += " is"
    return prompt


def test_answers_for_the_report_stay_within_what_the_model_reads(gpt2_bench: Bench) -> None:
    """GPT-2 has 128 positions; an edit is not to fail for what is only reported."""
    subject = gpt2_bench.editor(replace(QUICK, n_contexts=0))
    long = EditRequest(prompt=_of_length(gpt2_bench, 125), target_new="Rome", subject="France")
    report = subject.edit([long, REQUESTS[1].model_copy(update={"target_new": "Kuala Lumpur and Buenos Aires"})])
    assert all(isinstance(request.answer_after, str) for request in report.requests)


def test_what_the_model_cannot_read_is_named(gpt2_bench: Bench) -> None:
    subject = gpt2_bench.editor(QUICK)
    long = _of_length(gpt2_bench, 150)
    request = EditRequest(prompt=long, target_new="Rome", subject="France", case_id="long")
    with pytest.raises(RequestError, match=r"case 'long'.* and the model reads 128"):
        subject.edit([REQUESTS[0], request])
    asked = REQUESTS[0].model_copy(update={"validation_prompts": (long,)})
    with pytest.raises(RequestError, match=r"2 prompts to validate on are too long") as caught:
        subject.edit([asked], keep=[Probe(prompt="Rome is in", answer="Italy"), Probe(prompt=long, answer="Rome")])
    assert "case 'france'" in str(caught.value)
    assert "keep[1]" in str(caught.value)
    subject.settings = replace(QUICK, smoothing=None)
    subject.edit([asked], answers=False)


class Projected:
    """The preserved keys where only AlphaEdit's projector of them is left."""

    def __init__(self, bench: Bench) -> None:
        spaces = {layer: bench.statistics.null_space(layer, SETTINGS.null_space) for layer in (0, 1)}
        kept = {layer: space.combine(torch.eye(space.n_null, dtype=torch.float64)) for layer, space in spaces.items()}
        self.spaces = {layer: NullSpace.from_projector(U @ U.T) for layer, U in kept.items()}

    def check(self, model: Any, architecture: Any = None) -> None:
        assert model is not None

    def null_space(self, layer: int, rule: NullSpaceRule) -> NullSpace:
        return self.spaces[layer]

    def sample(self, layer: int) -> Tensor | None:
        return None


def test_a_projector_has_no_order_to_search_in(llama_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    settings = replace(QUICK, search=SearchSettings(threshold=0))
    assert all(layer.added for layer in other.editor(settings).edit(REQUESTS, answers=False).layers)
    other = replace(llama_bench, model=copy.deepcopy(llama_bench.model))
    without = other.editor(replace(settings, search=None))
    without.edit(REQUESTS, answers=False)
    subject = AlphaEditor(llama_bench.model, llama_bench.tokenizer, Projected(llama_bench), settings)
    report = subject.edit(REQUESTS, answers=False)
    assert [layer.added for layer in report.layers] == [0, 0]
    assert all(request.preserved_conflict is None for request in report.requests)
    assert sum("given as a projector" in record.message for record in caplog.records) == 2
    ours, theirs = llama_bench.weights(), other.weights()
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5) for name in ours)


def test_statistics_of_other_widths_are_refused(llama_bench: Bench) -> None:
    statistics = Projected(llama_bench)
    statistics.spaces = {layer: NullSpace.from_projector(torch.eye(4)) for layer in (0, 1)}
    subject = AlphaEditor(llama_bench.model, llama_bench.tokenizer, statistics, QUICK)
    with pytest.raises(SettingError, match="layer 0: the statistics are 4 wide, and the keys 64"):
        subject.edit(REQUESTS, answers=False)


@torch.no_grad()
def _load(model: Any, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
