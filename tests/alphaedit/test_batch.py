"""A batch on its way through the layers is the paper's algorithm with d x d matrices, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from corsa_plugins.alphaedit import SearchSettings, SmoothingSettings
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.lookup.wider import NeighbourSettings
from corsa_plugins.alphaedit.solver.smoothing import is_smoothed
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.asking import score_targets
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, SETTINGS, Bench
from tests.oracles import alphaedit as oracle

EARLY_STOP = SmoothingSettings(steps=4, share=0.4, over_median=0, tolerance=0.01, selection="early_stop")


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
        contexts = self.contexts = self.contexts or generate_contexts(model, tokenizer, n=2, length=4)
        last = settings.layers[-1]
        z = find_values(model, tokenizer, requests, last, contexts, settings.values).vectors.numpy()
        for index, layer in enumerate(settings.layers):
            linear = self.parts.ffn(layer).down
            K1 = request_keys(model, tokenizer, requests, [layer], contexts)[layer].numpy()
            left = z - request_outputs(model, tokenizer, requests, last).numpy()
            R = left / (len(settings.layers) - index)
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
            delta = self._delta(requests, index, W0, K1, R, left, Kp, U, n_null, P, ridge)
            self._put(linear, W0, delta)
        for layer in settings.layers:
            self.prior[layer].append(request_keys(model, tokenizer, requests, [layer], contexts)[layer].numpy())

    def _delta(  # eleven parameters: the letters of the paper
        self, requests: Any, index: int, W0: Tensor, K1: Any, R: Any, left: Any, Kp: Any, U: Any, n_null: int, P: Any,
        ridge: float,
    ) -> np.ndarray:  # fmt: skip
        settings = self.settings
        linear = self.parts.ffn(settings.layers[index]).down
        W = W0.numpy()
        beta = settings.prior_weight * (index + 1 if settings.prior_weight_by_layer else 1)
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
            scores = score_targets(self.bench.model, self.bench.tokenizer, pairs)
            return float(np.mean([np.exp(score.log_prob / score.n_tokens) for score in scores]))

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
    plain_bench = gpt2_bench.copy()
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


def test_order_of_requests_does_not_matter(gpt2_bench: Bench) -> None:
    other = gpt2_bench.copy()
    settings = replace(SETTINGS, search=SearchSettings(threshold=0.02))
    first, second = gpt2_bench.editor(settings).edit(REQUESTS), other.editor(settings).edit(REQUESTS[::-1])
    ours, theirs = gpt2_bench.weights(), other.weights()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-8, atol=1e-10)
    for a, b in zip(first.requests, second.requests[::-1], strict=True):
        assert a.residual == pytest.approx(b.residual)
        assert a.answer_after == b.answer_after


def test_requests_that_are_alike(llama_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The same request twice shares one key, and so does a contradiction."""
    subject = llama_bench.editor(replace(QUICK, n_contexts=0, smoothing=replace(SETTINGS.smoothing, share=1.0)))
    twice = subject.edit([REQUESTS[0], REQUESTS[0]], answers=False)
    assert twice.requests[0].residual == pytest.approx(twice.requests[1].residual, rel=1e-4)
    assert [request.batch_conflict for request in twice.requests] == pytest.approx([1, 1])
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
    assert llama_bench.holds(before)


def test_factors_are_kept_as_precisely_as_the_weights(gpt2_bench: Bench, llama_bench: Bench) -> None:
    for bench, dtype in ((gpt2_bench, torch.float64), (llama_bench, torch.float32)):
        subject = bench.editor(QUICK)
        subject.edit(REQUESTS, answers=False)
        (update,) = subject.state.updates(1)
        assert {update.keys.dtype, update.left.dtype, update.right.dtype} == {dtype}


def test_held_neighbours_move_less_and_the_subject_alone_more(gpt2_bench, monkeypatch) -> None:
    """What is listed is given here: a model this small lists nothing. The rest of the edit is the real one."""
    italy = EditRequest(prompt="The capital of Italy is", target_new="Rome", subject="Italy")
    monkeypatch.setattr("corsa_plugins.alphaedit.batch.of_neighbours", lambda *args: (italy,))
    alone = EditRequest(prompt="France is", target_new="Rome", subject="France")
    parts, asked = find_architecture(gpt2_bench.model), [italy, alone]
    before, clean = (
        request_outputs(gpt2_bench.model, gpt2_bench.tokenizer, asked, 1, architecture=parts),
        gpt2_bench.weights(),
    )
    plain = replace(QUICK, search=None, smoothing=None)

    def moved(**changes: Any) -> list[float]:
        editor = gpt2_bench.editor(replace(plain, **changes))
        editor.edit(REQUESTS, answers=False)
        after = request_outputs(gpt2_bench.model, gpt2_bench.tokenizer, asked, 1, architecture=parts)
        editor.revert_all()
        assert gpt2_bench.holds(clean)
        norms: list[float] = (after - before).norm(dim=0).tolist()
        return norms

    loose, held = moved(), moved(neighbours=NeighbourSettings(weight=100.0))
    assert held[0] < 0.3 * loose[0]
    wide = moved(subject_keys=True)
    assert wide[1] > 1.2 * loose[1]
