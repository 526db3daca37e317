"""MEMIT, ROME and the others on a model are their papers' algorithms, layer by layer and fact by fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditSettings, NullSpaceRule, SearchSettings, SmoothingSettings
from corsa_plugins.alphaedit.answers import validation_pairs, validation_score
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.values.anchor import NormAnchorSettings
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.family.blue import BluePlusSettings, BlueSettings
from corsa_plugins.methods.family.encore import EncoreSettings
from corsa_plugins.methods.family.kde import KdeSettings
from corsa_plugins.methods.family.memit import MemitPlusSettings, MemitSettings
from corsa_plugins.methods.family.nas import NasSettings
from corsa_plugins.methods.family.prune import PrunePlusSettings, PruneSettings
from corsa_plugins.methods.family.rect import RectPlusSettings, RectSettings
from corsa_plugins.methods.family.rome import EmmetSettings, RomeSettings
from corsa_plugins.methods.family.sphere import SphereSettings
from corsa_plugins.model.architecture import find_architecture
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, Bench
from tests.oracles import family as oracle
from tests.oracles.alphaedit import alphaedit, objective, solution, weights
from tests.support.problems import error


class Literal:
    """The algorithms on a model, each equation with d x d matrices."""

    def __init__(self, bench: Bench, settings: AlphaEditSettings) -> None:
        self.bench, self.settings = bench, settings
        self.downs = {layer: find_architecture(bench.model).ffn(layer).down for layer in settings.layers}
        self.contexts = generate_contexts(bench.model, bench.tokenizer, n=1, length=4)
        self.originals = {layer: down.weight.detach().numpy().copy() for layer, down in self.downs.items()}
        self.prior: dict[int, list[np.ndarray]] = {layer: [] for layer in settings.layers}
        self.made: dict[int, list[np.ndarray]] = {layer: [] for layer in settings.layers}
        self.seen: set[str] = set()
        self.norm: float | None = None

    def key(self, requests: Sequence[EditRequest], layer: int) -> np.ndarray:
        return request_keys(self.bench.model, self.bench.tokenizer, requests, [layer], self.contexts)[layer].numpy()

    def earlier(self, layer: int) -> np.ndarray:
        width = len(self.bench.statistics.moment(layer))
        return np.concatenate([np.zeros((width, 0)), *self.prior[layer]], axis=1)

    def eigenvectors(self, layer: int) -> tuple[np.ndarray, int]:
        """Ascending, and how many are in the null space."""
        U, S, _ = np.linalg.svd(self.bench.statistics.moment(layer).numpy())
        return U[:, np.argsort(S, kind="stable")], round(0.4 * len(S))

    def null_space(self, layer: int) -> np.ndarray:
        U, n_null = self.eigenvectors(layer)
        return U[:, :n_null] @ U[:, :n_null].T

    def memit(self, requests: Sequence[EditRequest]) -> None:
        model, tokenizer, layers = self.bench.model, self.bench.tokenizer, self.settings.layers
        Z = find_values(model, tokenizer, requests, layers[-1], self.contexts, self.settings.values).vectors.numpy()
        for layer, share in zip(layers, oracle.memit_shares(len(layers)), strict=True):
            missing = Z - request_outputs(model, tokenizer, requests, layers[-1]).numpy()
            C = self.bench.statistics.moment(layer).numpy()
            self.add(layer, oracle.memit(share * missing, self.key(requests, layer), C, self.settings.ridge))

    def on_memit(self, requests: Sequence[EditRequest], kind: str) -> None:
        """MEMIT's way through the layers with another closed form; keys are known once the batch is in."""
        model, tokenizer, layers = self.bench.model, self.bench.tokenizer, self.settings.layers
        Z = find_values(model, tokenizer, requests, layers[-1], self.contexts, self.settings.values).vectors.numpy()
        for layer, share in zip(layers, oracle.memit_shares(len(layers)), strict=True):
            R = share * (Z - request_outputs(model, tokenizer, requests, layers[-1]).numpy())
            C, K, lam = self.bench.statistics.moment(layer).numpy(), self.key(requests, layer), self.settings.ridge
            Kp = self.earlier(layer)
            if kind == "encore":
                self.add(layer, oracle.encore(R, K, C + Kp @ Kp.T / lam, lam, self.settings.norm_weight * lam))
            elif kind == "kde":
                self.add(layer, oracle.orthogonal_to(R, K, C, lam, Kp))
            else:
                self.add(layer, oracle.emmet(R, K, C))
        for layer in layers:
            self.prior[layer].append(self.key(requests, layer))

    def encore(self, requests: Sequence[EditRequest]) -> None:
        self.on_memit(requests, "encore")

    def kde(self, requests: Sequence[EditRequest]) -> None:
        self.on_memit(requests, "kde")

    def emmet(self, requests: Sequence[EditRequest]) -> None:
        self.on_memit(requests, "emmet")

    def plus(self, requests: Sequence[EditRequest]) -> None:
        """Algorithm 1 of AlphaEdit+ at every layer, on MEMIT's objective or AlphaEdit's, with any restraint."""
        model, tokenizer, settings = self.bench.model, self.bench.tokenizer, self.settings
        own, smooth, lam, beta = settings.residuals == "own", settings.smoothing, settings.ridge, settings.prior_weight
        layers, search = settings.layers, settings.search
        values = [find_values(model, tokenizer, requests, layers[-1], self.contexts, settings.values)] * (not own)
        for layer, share in zip(layers, [1, 1] if own else oracle.memit_shares(len(layers)), strict=True):
            at = layer if own else layers[-1]
            (Z,) = values or [find_values(model, tokenizer, requests, layer, self.contexts, settings.values)]
            missing = Z.vectors.numpy() - request_outputs(model, tokenizer, requests, at).numpy()
            C, K, Kp = self.bench.statistics.moment(layer).numpy(), self.key(requests, layer), self.earlier(layer)
            Lp = weights(Kp, K)
            chosen = oracle.inconsistent(np.linalg.norm(missing, axis=0), smooth.share)
            smoothed = [
                share * missing * (1 - chosen * (smooth.steps - t) / (2 * smooth.steps))
                for t in range(smooth.steps + 1)
            ]
            U, n_null = self.eigenvectors(layer)
            if settings.penalty == "weights":
                solve, worth = _alphaedit_plus(K, Kp, Lp, lam, beta)
            else:
                solve, worth = _memit_plus(K, Kp, Lp, C, lam, beta)
            if search.decides == "graded":
                free = oracle.dearer(C, U, n_null, search.weight)
                solve, _ = _memit_plus(K, Kp, Lp, free, lam, beta)
                P = np.eye(len(C))
            else:
                used = oracle.searched(
                    U, n_null, partial(solve, smoothed[0]), partial(worth, R=smoothed[0]), search.threshold
                )
                P = U[:, :used] @ U[:, :used].T
                self.seen |= {"some of them"} if n_null < used < len(U) else set()
            scores = []
            for R in smoothed:
                self.put(layer, solve(R, P))
                pairs = validation_pairs(requests, self.contexts)
                scores.append(validation_score(model, tokenizer, pairs, settings))
            t = scores.index(max(scores))
            self.seen |= {"smoothed"} if t < smooth.steps else {"not smoothed"}
            self.seen |= {"in conflict"} if any(0.1 < one < 0.9 for one in np.diag(Lp)) else set()
            self.made[layer].append(solve(smoothed[t], P))
            self.put(layer)
        for layer in layers:
            self.prior[layer].append(self.key(requests, layer))

    def rome(self, requests: Sequence[EditRequest]) -> None:
        model, tokenizer, (layer,) = self.bench.model, self.bench.tokenizer, self.settings.layers
        down = self.downs[layer]
        for request in requests:
            values = self.settings.values
            v = find_values(model, tokenizer, [request], layer, self.contexts, values, site=down.module).vectors[:, 0]
            k = self.key([request], layer)[:, 0]
            # W k is the output at the bare prompt; with its bias, which v has too
            now = request_outputs(model, tokenizer, [request], layer, site=down.module)[:, 0].numpy()
            W = down.weight.detach().numpy()
            C = self.bench.statistics.moment(layer).numpy()
            self.add(layer, oracle.rome(W, k, W @ k + v.numpy() - now, C))

    def blue(self, requests: Sequence[EditRequest]) -> None:
        model, tokenizer, settings = self.bench.model, self.bench.tokenizer, self.settings
        for layer in settings.layers:
            Z = find_values(model, tokenizer, requests, layer, self.contexts, settings.values).vectors.numpy()
            missing, K = Z - request_outputs(model, tokenizer, requests, layer).numpy(), self.key(requests, layer)
            self.add(layer, alphaedit(missing, K, self.earlier(layer), self.null_space(layer), settings.ridge))
        for layer in settings.layers:
            self.prior[layer].append(self.key(requests, layer))

    def nas(self, requests: Sequence[EditRequest]) -> None:
        model, tokenizer, settings = self.bench.model, self.bench.tokenizer, self.settings
        layers, rule = settings.layers, settings.norm_anchor
        last = layers[-1]
        h = request_outputs(model, tokenizer, requests, last).numpy()
        v0 = request_outputs(model, tokenizer, requests, last, site=self.downs[last].module).numpy()
        found = find_values(model, tokenizer, requests, last, self.contexts, settings.values).vectors.numpy()
        if self.norm is None:  # of the first requests, in the original model
            self.norm = oracle.nas_norm(np.linalg.norm(v0 + found - h, axis=0).tolist(), rule.drop)
        columns = zip(h.T, v0.T, (found - h).T, strict=True)
        each = [oracle.nas_target(*parts, self.norm, rule.skip_over) for parts in columns]
        for layer, share in zip(layers, oracle.memit_shares(len(layers)), strict=True):
            missing = np.stack(each, axis=1) - request_outputs(model, tokenizer, requests, last).numpy()
            P, K = self.null_space(layer), self.key(requests, layer)
            self.add(layer, alphaedit(share * missing, K, self.earlier(layer), P, settings.ridge))
        for layer in layers:
            self.prior[layer].append(self.key(requests, layer))

    def restrained(self, requests: Sequence[EditRequest]) -> None:
        """MEMIT's updates, or AlphaEdit's; in the weights is the restrained sum of those from the first batch on, and
        the next layer's residual is of the weights as they are with that."""
        model, tokenizer, layers = self.bench.model, self.bench.tokenizer, self.settings.layers
        Z = find_values(model, tokenizer, requests, layers[-1], self.contexts, self.settings.values).vectors.numpy()
        for layer, share in zip(layers, oracle.memit_shares(len(layers)), strict=True):
            R = share * (Z - request_outputs(model, tokenizer, requests, layers[-1]).numpy())
            C, K = self.bench.statistics.moment(layer).numpy(), self.key(requests, layer)
            if self.settings.penalty == "outputs":
                self.made[layer].append(oracle.memit(R, K, C, self.settings.ridge))
            else:
                Kp = self.earlier(layer)
                self.made[layer].append(alphaedit(R, K, Kp, self.null_space(layer), self.settings.ridge))
            self.put(layer)
        for layer in layers:
            self.prior[layer].append(self.key(requests, layer))

    def put(self, layer: int, *candidate: np.ndarray) -> None:
        """Into the weight what the rule makes of every update so far, and of one more."""
        W0, rule, made = self.originals[layer], self.settings.restraint, [*self.made[layer], *candidate]
        if rule is None:
            total = sum(made)
        elif rule.rule == "principal_directions":
            total = sum(oracle.weakened_by_sphere(delta, W0, rule.energy, rule.strength) for delta in made)
        elif rule.rule == "relative_change":
            total = sum(oracle.kept_by_rect(delta, W0, rule.share) for delta in made)
        else:
            self.seen |= {f"held at {layer}"} if np.linalg.norm(sum(made), 2) > np.linalg.norm(W0, 2) else set()
            total = oracle.held_by_prune(sum(made), W0, rule.base)
        self.add(layer, W0 + total - self.downs[layer].weight.detach().numpy())

    nas_with_some_left_out = nas
    prune = rect = sphere = prune_two_layers = rect_two_layers = sphere_two_layers = restrained
    encore_two_layers = encore
    memit_plus = memit_plus_graded = rect_plus = prune_plus = blue_plus = plus

    @torch.no_grad()
    def add(self, layer: int, delta: np.ndarray) -> None:
        self.downs[layer].weight.add_(torch.from_numpy(delta))


def _memit_plus(K: np.ndarray, Kp: np.ndarray, Lp: np.ndarray, C: np.ndarray, lam: float, beta: float) -> Any:
    return (
        lambda R, P: oracle.memit_plus(R, K, Kp, Lp, P, C, lam, beta),
        lambda delta, R: oracle.memit_plus_objective(delta, R, K, Kp, Lp, C, lam, beta),
    )


def _alphaedit_plus(K: np.ndarray, Kp: np.ndarray, Lp: np.ndarray, lam: float, beta: float) -> Any:
    return (
        lambda R, P: solution(R, K, Kp, Lp, P, lam, beta),
        lambda delta, R: objective(np.zeros_like(delta), delta, K, R, Kp, Lp, lam, beta),
    )


SETTINGS = {"values": replace(QUICK.values, steps=4), "n_contexts": 1, "context_length": 4}
MEMIT = MemitSettings.of(MemitSettings(layers=(0, 1), ridge=0.5, **SETTINGS))
ROME = RomeSettings.of(RomeSettings(layers=(1,), **{**SETTINGS, "values": replace(QUICK.values, steps=4, at="ffn")}))


BLUE = BlueSettings.of(
    BlueSettings(layers=(0, 1), ridge=0.5, null_space=NullSpaceRule("share", 0.4), prior_weight=1.0, **SETTINGS)
)
RECT = RectSettings.of(RectSettings(layers=(1,), ridge=0.5, **SETTINGS))
PRUNE = PruneSettings.of(
    PruneSettings(layers=(1,), ridge=1e-3, restraint=RestraintSettings("singular_values", base=4.0), **SETTINGS)
)
SPHERE = SphereSettings.of(SphereSettings(layers=(1,), ridge=0.5, null_space=NullSpaceRule("share", 0.4), **SETTINGS))
ENCORE = EncoreSettings.of(EncoreSettings(layers=(1,), ridge=0.5, norm_weight=0.3, **SETTINGS))
NAS = NasSettings.of(NasSettings(layers=(0, 1), ridge=0.5, null_space=NullSpaceRule("share", 0.4), **SETTINGS))
KDE = KdeSettings.of(KdeSettings(layers=(0, 1), ridge=0.5, **SETTINGS))
EMMET = EmmetSettings.of(EmmetSettings(layers=(0, 1), **SETTINGS))
TWO = (0, 1)
PLUS = {
    "layers": TWO, "ridge": 0.5, "prior_weight": 3.0, "null_space": NullSpaceRule("share", 0.4),
    "search": SearchSettings(threshold=3e-3), **SETTINGS,
    "smoothing": SmoothingSettings(steps=3, share=0.4, over_median=0, selection="best"),
}  # fmt: skip
MEMIT_PLUS = MemitPlusSettings.of(MemitPlusSettings(**PLUS))
GRADED = MemitPlusSettings.of(MemitPlusSettings(**{**PLUS, "search": SearchSettings(weight=4.0)}))
RECT_PLUS = RectPlusSettings.of(RectPlusSettings(**PLUS))
PRUNE_PLUS = PrunePlusSettings.of(
    PrunePlusSettings(**{**PLUS, "ridge": 1e-3, "restraint": RestraintSettings("singular_values", base=4.0)})
)
BLUE_PLUS = BluePlusSettings.of(BluePlusSettings(**PLUS))
FEW = replace(NAS, norm_anchor=NormAnchorSettings(drop=0.5, skip_over=1.05))
EACH = {
    "memit": MEMIT, "rome": ROME, "blue": BLUE, "rect": RECT, "prune": PRUNE, "encore": ENCORE, "sphere": SPHERE,
    "nas": NAS, "nas_with_some_left_out": FEW, "kde": KDE, "emmet": EMMET, "memit_plus": MEMIT_PLUS,
    "memit_plus_graded": GRADED, "rect_plus": RECT_PLUS, "prune_plus": PRUNE_PLUS, "blue_plus": BLUE_PLUS,
    "rect_two_layers": replace(RECT, layers=TWO), "prune_two_layers": replace(PRUNE, layers=TWO),
    "sphere_two_layers": replace(SPHERE, layers=TWO), "encore_two_layers": replace(ENCORE, layers=TWO),
}  # fmt: skip
SEEN = {
    name: {"smoothed", "in conflict", *(set() if name == "memit_plus_graded" else {"some of them"})}
    for name in EACH
    if "plus" in name
} | {
    "prune_plus": {"in conflict", "some of them", "held at 0", "held at 1"},
    "prune": {"held at 1"},
    "prune_two_layers": {"held at 0", "held at 1"},
}
"""What a case has to meet, or it would compare nothing of it."""

THIRD = [
    EditRequest(prompt="Italy has the capital", target_new="Madrid", subject="Italy", case_id="third"),
    EditRequest(prompt="Where was Anna Berg born? In", target_new="Rome", subject="Anna Berg", case_id="fourth"),
]


@pytest.mark.parametrize(("name", "settings"), EACH.items(), ids=list(EACH))
def test_on_a_model_it_is_the_papers_algorithm(gpt2_bench: Bench, name: str, settings: AlphaEditSettings) -> None:
    twin = gpt2_bench.copy()
    literal, editor = Literal(twin, settings), gpt2_bench.editor(settings)
    for requests in (REQUESTS, LATER, THIRD):
        before = gpt2_bench.weights()
        getattr(literal, name)(requests)
        editor.edit(requests)
        changed = [p for p, weight in gpt2_bench.model.named_parameters() if not torch.equal(weight, before[p])]
        assert len(changed) == len(settings.layers)
        for parameter in changed:
            ours, theirs = (dict(b.model.named_parameters())[parameter] - before[parameter] for b in (gpt2_bench, twin))
            assert error(ours.detach(), theirs.detach()) <= 1e-6, parameter
    assert SEEN.get(name, set()) <= literal.seen


def test_rome_writes_one_fact_after_the_other_and_takes_them_back_together(gpt2_bench: Bench) -> None:
    start, editor = gpt2_bench.weights(), gpt2_bench.editor(ROME)
    report = editor.edit(REQUESTS)
    assert [request.prompt for request in report.requests] == [request.prompt for request in REQUESTS]
    together = gpt2_bench.weights()
    editor.edit(LATER)
    editor.revert("1")
    assert not gpt2_bench.holds(start)
    editor.revert("2")
    assert gpt2_bench.holds(start)
    for request in REQUESTS:  # each as a batch of its own: the same, but for the rounding of the sum
        editor.edit([request])
    for name, weight in gpt2_bench.model.named_parameters():
        assert torch.allclose(weight, together[name], rtol=1e-9, atol=1e-12)


def test_settings_of_another_method_give_what_is_the_models_and_not_the_methods() -> None:
    chosen = AlphaEditSettings(layers=(3, 4), ridge=0.1, ridge_unit="relative", values=QUICK.values, subject_keys=True)
    memit = MemitSettings.of(chosen)
    assert type(memit) is AlphaEditSettings
    assert (memit.layers, memit.values, memit.ridge, memit.ridge_unit) == ((3, 4), QUICK.values, 0.1, "relative")
    assert (memit.penalty, memit.null_space, memit.search, memit.subject_keys) == ("outputs", None, None, False)
    rome = RomeSettings.of(chosen)
    assert (rome.layers, rome.ridge, rome.values.at, rome.values.steps) == ((4,), 0, "ffn", QUICK.values.steps)
    assert MemitSettings.of(AlphaEditSettings(layers=(3,))).ridge == 15000, "an absolute ridge is of its own penalty"
    encore = EncoreSettings.of(chosen)
    assert (encore.values.stop_most_probable, encore.prior_weight, encore.norm_weight > 0) == (2, 1, True)
    assert MemitSettings.of(encore) == memit, "nothing of it stays"
    own = replace(memit, ridge=7.0)
    assert MemitSettings.of(own) == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ridge": 0}, "ridge is 0.0: it must be a number over 0; 0, every target exactly, is for penalty='outputs'"),
        ({"ridge": 0, "penalty": "outputs"}, "ridge is 0.0: 0 leaves no room for prior_weight and search"),
        ({"one_at_a_time": True}, "one_at_a_time is True: not for prior_weight and search"),
        ({"norm_weight": 1.0}, "norm_weight is 1.0: with penalty='weights' the norm is all there is"),
        ({"null_space": None}, "null_space is None: edits may write anywhere, and search has nothing to add"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        AlphaEditSettings(layers=(0,), **changes)
    with pytest.raises(SettingError, match=r"layers is \(0, 1\): ROME edits one layer"):
        RomeSettings(layers=(0, 1))
