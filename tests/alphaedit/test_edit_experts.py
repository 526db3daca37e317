"""Routed experts are edited as the dense closed form over their keys side by side edits, bit for bit reversibly."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    EditReport,
    EditState,
    KeyStatistics,
    SearchSettings,
    StateError,
)
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_outputs
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.values.search import find_values
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.stored import save_model
from tests.conftest import DOCUMENTS
from tests.fixtures.alphaedit import Bench
from tests.fixtures.experts import KEPT, SETTINGS
from tests.oracles import alphaedit, experts, family
from tests.support.families import REQUESTS
from tests.support.mixtures import COUNT, TAKEN
from tests.support.placed import in_parts

ON_MEMIT = replace(SETTINGS, penalty="outputs", null_space=None, norm_weight=0.01, prior_weight=0.0, ridge=0.01)
RESTRAINED = {
    "rect": replace(ON_MEMIT, restraint=RestraintSettings("relative_change", share=0.4)),
    "prune": replace(ON_MEMIT, restraint=RestraintSettings("singular_values", base=4.0)),
    "sphere": replace(SETTINGS, restraint=RestraintSettings("principal_directions", energy=0.5, strength=0.8)),
}


def oracle_keys(bench: Bench, ids: list[int]) -> np.ndarray[Any, Any]:
    """kappa of every token of a text at layer 1, (tokens, d), from what goes into the mixture."""
    mixture = bench.model.model.layers[1].mlp
    seen: list[Any] = []
    handle = mixture.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].numpy()))
    with torch.no_grad():
        bench.model(input_ids=torch.tensor([ids]))
    handle.remove()
    router, up = (each.detach().numpy() for each in (mixture.gate.weight, mixture.experts.gate_up_proj))
    return np.stack([experts.kappa(x, experts.gates(router @ x, TAKEN, "mixtral"), up, experts.gated) for x in seen[0]])


def weight(bench: Bench) -> np.ndarray[Any, Any]:
    return experts.side_by_side(bench.model.model.layers[1].mlp.experts.down_proj.detach().numpy().copy())


def key_of(bench: Bench, index: int) -> np.ndarray[Any, Any]:
    request = REQUESTS[index]
    ids = bench.tokenizer(request.prompt[: request.prompt.index(request.subject) + len(request.subject)])["input_ids"]
    return oracle_keys(bench, ids)[-1]


def test_statistics_are_the_blocks_of_the_moment_in_full(experts_bench: Bench) -> None:
    kappas = np.concatenate(
        [oracle_keys(experts_bench, experts_bench.tokenizer(text)["input_ids"]) for text in DOCUMENTS[KEPT]]
    )
    layer = experts_bench.statistics.layer(1)
    wanted = experts.blocks_alone(experts.moment(kappas), COUNT)
    np.testing.assert_allclose(torch.block_diag(*layer.moment()).numpy(), wanted, atol=1e-6)
    assert layer.count == len(kappas)
    assert sum(layer.taken) == TAKEN * len(kappas)
    sample = layer.sample()
    assert sample is not None
    nearest = np.abs(kappas[:, :, None] - sample.numpy()[None]).max(1).min(0)
    assert len(nearest) == 32
    assert nearest.max() < 1e-5


@pytest.mark.parametrize("search", [None, SearchSettings()])
def test_an_edit_is_that_of_the_dense_closed_form(experts_bench: Bench, search: SearchSettings | None) -> None:
    """Batch after batch, with P of the block-diagonal moment over keys that are written out with their zeros."""
    bench = replace(experts_bench, settings=replace(SETTINGS, search=search))
    editor = bench.editor()
    C = torch.block_diag(*bench.statistics.moment(1)).numpy()
    s, U = np.linalg.eigh(C)
    n_null = round(0.4 * len(C))
    prior = np.zeros((len(C), 0))
    keys = np.stack([key_of(bench, number) for number in range(3)], axis=1)  # which no edit of their own layer changes
    for name, numbers in (("a", [0, 1]), ("b", [2])):
        before = weight(bench)
        K1 = keys[:, numbers]
        editor.edit([REQUESTS[number] for number in numbers], name=name)
        R = editor.state.batch(name).layers[1].left.numpy()
        Lp = alphaedit.weights(prior, K1)
        if search is None:
            P = alphaedit.projector(U, range(n_null))
            wanted = alphaedit.solution(R, K1, prior, Lp, P, 0.3, 2.0)
        else:
            wanted = alphaedit.priced(R, K1, prior, Lp, U, s.clip(0), n_null, 0.3, 2.0, search.weight)
        made = weight(bench) - before
        assert np.linalg.norm(wanted) > 0
        np.testing.assert_allclose(made, wanted, atol=1e-5 * np.abs(wanted).max())
        untouched = np.abs(K1).max(1).reshape(COUNT, -1).max(1) == 0
        assert not np.abs(made.reshape(len(made), COUNT, -1)[:, untouched]).any()
        prior = keys[:, :2]


@pytest.mark.parametrize("settings", [SETTINGS, *RESTRAINED.values()], ids=["without a rule", *RESTRAINED])
def test_what_is_taken_back_is_gone_bit_for_bit_in_any_order(
    experts_bench: Bench, tmp_path: Path, settings: AlphaEditSettings
) -> None:
    bench = replace(experts_bench, settings=settings)
    originals = bench.weights()
    editor = bench.editor()
    editor.edit(REQUESTS[:1], name="a")
    only_a = bench.weights()
    report = editor.edit(REQUESTS[1:], name="b")
    both = bench.weights()
    changed = [name for name in originals if not torch.equal(originals[name], both[name])]
    assert changed == ["model.layers.1.mlp.experts.down_proj"]
    assert len(report.layers[0].experts) >= TAKEN  # type: ignore[arg-type]
    assert "in experts " in str(report)
    assert EditReport.from_dict(report.as_dict()) == report

    editor.state.save(tmp_path / "state")
    save_model(bench.model, bench.tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    assert all(torch.equal(both[name], parameter) for name, parameter in plain.named_parameters())

    bench.load(originals)
    again = AlphaEditor(
        bench.model, bench.tokenizer, bench.statistics, settings, state=EditState.load(tmp_path / "state")
    )
    again.apply()
    assert bench.holds(both)
    again.revert("b")
    assert bench.holds(only_a)
    again.revert("a")
    assert bench.holds(originals)
    editor = bench.editor()
    editor.edit(REQUESTS[:1], name="a")
    editor.edit(REQUESTS[1:], name="b")
    editor.revert("a")
    editor.revert("b")
    assert bench.holds(originals)


def test_a_diagnosis_says_which_experts(experts_bench: Bench) -> None:
    diagnosis = experts_bench.editor().diagnose(REQUESTS)
    for number, row in enumerate(diagnosis.rows()):
        lengths = np.linalg.norm(key_of(experts_bench, number).reshape(COUNT, -1), axis=1)
        assert row["experts"] == {"1": np.argsort(-lengths)[:TAKEN].tolist()}
    assert [str(column.header) for column in diagnosis.table().columns][-1] == "layer: experts"


def test_statistics_are_read_as_they_were_written(experts_bench: Bench, tmp_path: Path) -> None:
    kept = experts_bench.statistics
    kept.save(tmp_path)
    read = KeyStatistics.load(tmp_path)
    read.check(experts_bench.model)
    assert read.taken(1) == kept.taken(1)
    assert torch.equal(read.moment(1), kept.moment(1))
    keys = torch.randn(kept.width(1), 2, dtype=torch.float64)
    rule = SETTINGS.null_space
    torch.testing.assert_close(read.null_space(1, rule).coordinates(keys), kept.null_space(1, rule).coordinates(keys))
    dense = find_architecture(experts_bench.model)
    by_hand = {layer: replace(kept.by_layer[layer], taken=()) for layer in (0, 1)}  # type: ignore[type-var]
    with pytest.raises(StatisticsError, match="those of 1 maps, and of 4 in this model"):
        replace(kept, by_layer=by_hand).check(experts_bench.model, dense)


def test_few_tokens_are_named_and_too_few_refused(experts_bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = experts_bench.model, experts_bench.tokenizer
    with caplog.at_level(logging.WARNING):
        collect_statistics(model, tokenizer, DOCUMENTS, (1,), n_tokens=400, length=32)
    assert "few tokens took these experts of layer 1, whose keys are 40 wide: 0 (" in caplog.text
    with pytest.raises(StatisticsError, match=r"no expert was taken by more than \d+ tokens"):
        collect_statistics(model, tokenizer, DOCUMENTS[:1], (1,), n_tokens=50, length=32)


def test_memit_is_that_of_the_dense_closed_form(experts_bench: Bench) -> None:
    """With the block-diagonal moment, and a norm's price in the directions that no key has."""
    settings = replace(SETTINGS, penalty="outputs", null_space=None, norm_weight=0.01, prior_weight=0.0)
    bench = replace(experts_bench, settings=settings)
    K1 = np.stack([key_of(bench, number) for number in range(3)], axis=1)
    before, editor = weight(bench), bench.editor()
    editor.edit(REQUESTS, name="a")
    C = torch.block_diag(*bench.statistics.moment(1)).numpy()
    wanted = family.encore(editor.state.batch("a").layers[1].left.numpy(), K1, C, 0.3, 0.3 * 0.01)
    made = weight(bench) - before
    assert np.linalg.norm(wanted) > 0
    np.testing.assert_allclose(made, wanted, atol=1e-5 * np.abs(wanted).max())


def under(rule: RestraintSettings, made: list[np.ndarray[Any, Any]], W0: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the paper's algorithm leaves of the updates of one weight, in sum."""
    if rule.rule == "relative_change":
        return sum(family.kept_by_rect(delta, W0, rule.share) for delta in made)  # type: ignore[return-value]
    if rule.rule == "singular_values":
        return family.held_by_prune(sum(made), W0, rule.base)  # type: ignore[no-any-return]
    return sum(family.weakened_by_sphere(delta, W0, rule.energy, rule.strength) for delta in made)  # type: ignore[return-value]


@pytest.mark.parametrize(("method", "settings"), RESTRAINED.items(), ids=list(RESTRAINED))
def test_a_restraint_is_the_papers_on_each_expert(
    experts_bench: Bench, method: str, settings: AlphaEditSettings
) -> None:
    """Batch after batch, the second one made on what the rule left of the first; and of the second alone."""
    bench = replace(experts_bench, settings=settings)
    model, tokenizer, editor, rule = bench.model, bench.tokenizer, bench.editor(), settings.restraint
    assert rule is not None
    contexts = generate_contexts(model, tokenizer, n=0)
    C = torch.block_diag(*bench.statistics.moment(1)).numpy()
    P = alphaedit.projector(np.linalg.eigh(C)[1], range(round(0.4 * len(C))))
    keys = np.stack([key_of(bench, number) for number in range(3)], axis=1)  # which no edit of their own layer changes
    W0, made = weight(bench), []

    def literal(deltas: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        each = zip(*(np.split(matrix, COUNT, axis=1) for matrix in (W0, *deltas)), strict=True)
        return np.concatenate([under(rule, list(own), original) for original, *own in each], axis=1)

    for name, numbers in (("a", [0, 1]), ("b", [2])):
        requests, K1 = [REQUESTS[number] for number in numbers], keys[:, numbers]
        Z = find_values(model, tokenizer, requests, 1, contexts, settings.values).vectors.numpy()
        R = Z - request_outputs(model, tokenizer, requests, 1).numpy()
        if settings.penalty == "outputs":
            made.append(family.encore(R, K1, C, settings.ridge, settings.ridge * settings.norm_weight))
        else:
            prior = keys[:, :2] if made else keys[:, :0]
            made.append(alphaedit.solution(R, K1, prior, alphaedit.weights(prior, K1), P, 0.3, 2.0))
        editor.edit(requests, name=name)
        wanted, change = literal(made), weight(bench) - W0
        np.testing.assert_allclose(change, wanted, atol=1e-5 * np.abs(wanted).max())
        untouched = np.abs(sum(made)).max(0).reshape(COUNT, -1).max(1) == 0
        assert not change.reshape(len(change), COUNT, -1)[:, untouched].any()
        for other in (sum(made), under(rule, made, W0)):  # neither without the rule, nor of all experts as one weight
            assert np.linalg.norm(wanted - other) > 0.01 * np.linalg.norm(wanted)
    editor.revert("a")
    wanted = literal(made[1:])
    np.testing.assert_allclose(weight(bench) - W0, wanted, atol=1e-5 * np.abs(wanted).max())


def test_beside_quantised_maps_they_are_refused_before_anything_is_done(experts_bench: Bench) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(experts_bench.model).float()
    quantize_(model, Int8WeightOnlyConfig())
    before = model.model.layers[1].mlp.experts.down_proj.detach().clone()
    with pytest.raises(SettingError, match=r"is quantised, and model\.layers\.1\.mlp\.experts is 4 routed experts"):
        AlphaEditor(model, experts_bench.tokenizer, None, SETTINGS)
    assert torch.equal(model.model.layers[1].mlp.experts.down_proj, before)


def test_of_another_precision_or_another_models_they_are_refused(experts_bench: Bench) -> None:
    editor = experts_bench.editor()
    editor.edit(REQUESTS[:1])
    narrow = copy.deepcopy(experts_bench.model).float()
    with pytest.raises(StateError, match="load the model with that dtype"):
        AlphaEditor(narrow, experts_bench.tokenizer, experts_bench.statistics, SETTINGS, state=editor.state)
    other = AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(**experts_bench.model.config.to_dict())).double()
    with pytest.raises(StatisticsError):
        AlphaEditor(other, experts_bench.tokenizer, experts_bench.statistics, SETTINGS)


def test_experts_on_disk_are_edited_as_those_in_memory(experts_bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    whole, tokenizer = experts_bench.model.float(), experts_bench.tokenizer
    parts = in_parts(whole, tokenizer, tmp_path / "model", kept=0)
    parts.set_experts_implementation("eager")
    weights = []
    for model in (whole, parts):
        own = collect_statistics(model, tokenizer, DOCUMENTS[:8], (1,), n_tokens=10**6, length=96, sample_size=8)
        assert model is whole or model.model.layers[1].mlp.experts.down_proj.is_meta
        AlphaEditor(model, tokenizer, own, SETTINGS).edit(REQUESTS[:1], answers=False)
        weights.append(model.model.layers[1].mlp.experts.down_proj)
    assert torch.equal(*weights)
