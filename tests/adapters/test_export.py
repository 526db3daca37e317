"""A state's edits as adapters: whole, by the batch, and compressed; and what is refused before anything is written."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corsa_plugins.adapters import AdapterForm, Asked, export_state, read_adapter
from corsa_plugins.adapters.efficacy import share_answered
from corsa_plugins.adapters.export import state_adapter
from corsa_plugins.adapters.low_rank import joined
from corsa_plugins.alphaedit import EditState, KeyStatistics, StateError
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.statistics.layer import MomentStatistics, StatisticsError
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.outputs import OutputError
from tests.conftest import llama
from tests.fixtures.adapters import Edited
from tests.oracles import adapters as oracle
from tests.support.serving import assert_llama_cpp_converts, assert_vllm_loads


def test_all_batches_and_single_ones_add_up(edited: Edited, tmp_path: Path) -> None:
    whole = export_state(edited.state, tmp_path / "whole")
    assert (whole.rank, whole.efficacy) == (5, None)
    assert {module.loss for module in whole.modules.values()} == {0.0}
    parts = []
    for name, rank in (("monday", 3), ("tuesday", 2)):
        assert export_state(edited.state, tmp_path / name, batches=[name]).rank == rank
        assert json.loads((tmp_path / name / "corsa.json").read_text())["batches"] == [{"name": name, "requests": rank}]
        parts.append(read_adapter(tmp_path / name))
    both = read_adapter(tmp_path / "whole")
    assert both.base == "a/testbed"
    for layer, module in edited.state.modules.items():
        wanted = joined(edited.state.updates(layer)).delta()
        assert torch.equal(both.updates[module].delta(), wanted)
        torch.testing.assert_close(sum(part.updates[module].delta() for part in parts), wanted, rtol=0, atol=1e-12)
    assert_vllm_loads(tmp_path / "whole")
    assert_llama_cpp_converts(tmp_path / "whole", "LLAMA", 3)


def test_compressed_it_is_the_oracles_best_in_the_norm_of_the_keys(edited: Edited, tmp_path: Path) -> None:
    statistics = edited.base.statistics
    form = AdapterForm(rank=2, statistics=statistics)
    exported = export_state(edited.state, tmp_path / "out", form=form, asked=edited.asked)
    assert exported.rank == 2
    adapter = read_adapter(tmp_path / "out")
    for layer, module in edited.state.modules.items():
        updates = edited.state.updates(layer)
        delta = joined(updates).delta().numpy()
        keys = torch.cat([update.keys for update in updates], 1).double().numpy()
        C = oracle.moment(statistics.moment(layer).double().numpy(), keys)
        literal = oracle.best(delta, C, 2)
        np.testing.assert_allclose(adapter.updates[module].delta().numpy(), literal, atol=2e-5 * np.abs(delta).max())
        told = exported.modules[module]
        assert (told.ranks, told.rank) == (5, 2)
        assert told.loss == pytest.approx(oracle.loss(delta, literal, C), rel=1e-3)


def test_the_cost_in_efficacy_is_what_the_models_answer(edited: Edited, tmp_path: Path) -> None:
    before = edited.base.weights()
    exported = export_state(edited.state, tmp_path / "out", form=AdapterForm(rank=1), asked=edited.asked)
    assert edited.base.holds(before)
    requests = edited.state.requests
    whole, small = copy.deepcopy(edited.model), edited.base.model
    adapter = read_adapter(tmp_path / "out")
    with torch.no_grad():
        for name, update in adapter.updates.items():
            weight = small.get_submodule(name).weight
            weight.copy_((weight.double() + update.delta()).float())
    wanted = [share_answered(Asked(model, edited.base.tokenizer), requests) for model in (whole, small)]
    assert exported.efficacy == pytest.approx(wanted)
    assert wanted[1] < wanted[0] == 1


def test_a_rank_that_suffices_changes_nothing(edited: Edited, tmp_path: Path) -> None:
    exported = export_state(edited.state, tmp_path / "out", form=AdapterForm(rank=7), asked=edited.asked)
    assert (exported.rank, exported.efficacy) == (5, None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": ["friday"]}, StateError, "no batch 'friday' in force; there are: monday, tuesday"),
        (
            {"form": AdapterForm(max_rank=3)},
            SettingError,
            r"rank 5 \(the edits in force at .*down_proj\), and at most 3 .* --max-lora-rank 8; .*"
            r"--batch exports single batches \(monday: 3, tuesday: 2\)",
        ),
        ({"batches": ["monday"], "form": AdapterForm(max_rank=2)}, SettingError, "--rank compresses it"),
    ],
)
def test_refusals(
    options: dict[str, Any], error: type[Exception], message: str, edited: Edited, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_state(edited.state, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_values_out_of_range() -> None:
    with pytest.raises(SettingError, match="rank is 0"):
        AdapterForm(rank=0)
    with pytest.raises(SettingError, match="dtype is 'int8'"):
        AdapterForm(dtype="int8")


def test_a_model_that_is_not_the_one_from_before_is_refused(edited: Edited, tmp_path: Path) -> None:
    tokenizer = edited.base.tokenizer
    with pytest.raises(StateError, match=r"holds the batches monday, tuesday .*before the edits, a/testbed"):
        export_state(edited.state, tmp_path / "out", asked=Asked(edited.model, tokenizer))
    other = llama(len(tokenizer), seed=5, n_blocks=3)
    with pytest.raises(StateError, match="made on another model"):
        export_state(edited.state, tmp_path / "out", asked=Asked(other, tokenizer))
    with torch.no_grad():
        edited.base.model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    with pytest.raises(StateError, match="the model has changed since"):
        export_state(edited.state, tmp_path / "out", asked=edited.asked)
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_another_model_are_refused(edited: Edited, tmp_path: Path) -> None:
    narrow = KeyStatistics({0: MomentStatistics(torch.eye(5), 10)})
    form = AdapterForm(rank=1, statistics=narrow)
    with pytest.raises(StatisticsError, match="statistics of another one"):
        export_state(edited.state, tmp_path / "out", form=form, asked=edited.asked)
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_edits_or_name_is_refused(edited: Edited, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no batch in force: there is nothing to export"):
        export_state(edited.state.first(0), tmp_path / "out")
    nameless = replace(edited.state, fingerprint=replace(edited.state.fingerprint, name=""))
    with pytest.raises(SettingError, match="what its model is called: give the model"):
        export_state(nameless, tmp_path / "out")
    export_state(nameless, tmp_path / "out", base="named")
    assert read_adapter(tmp_path / "out").base == "named"
    with pytest.raises(OutputError, match="not empty"):
        export_state(edited.state, tmp_path / "out")


def test_a_saved_state_gives_the_same_adapter(edited: Edited, tmp_path: Path) -> None:
    edited.state.save(tmp_path / "state")
    export_state(edited.state, tmp_path / "one")
    export_state(EditState.load(tmp_path / "state"), tmp_path / "other")
    for file in ("adapter_model.safetensors", "adapter_config.json", "corsa.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_what_is_not_the_sum_of_its_updates_is_refused(edited: Edited, tmp_path: Path) -> None:
    first, *rest = edited.state.batches
    held = replace(first, settings=replace(first.settings, restraint=RestraintSettings("singular_values")))
    state = replace(edited.state, batches=(held, *rest))
    with pytest.raises(SettingError, match=r"sum of the updates of monday, .* export the edited model"):
        export_state(state, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_state(state, tmp_path / "other", batches=["tuesday"]).rank == 2


def test_what_is_projected_is_exported_as_it_is_in_the_weights(edited: Edited) -> None:
    rule = RestraintSettings("principal_directions", energy=0.5, strength=1.0)
    batches = tuple(replace(batch, settings=replace(batch.settings, restraint=rule)) for batch in edited.state.batches)
    state = replace(edited.state, batches=batches)
    adapter, _ = state_adapter(state)
    maps = {layer: find_architecture(edited.model).ffn(layer).down for layer in state.modules}
    plain = {name: update.left @ update.right.T for name, update in state_adapter(edited.state)[0].updates.items()}
    present = {layer: down.weight.detach().clone() for layer, down in maps.items()}
    for layer, down in maps.items():
        state.write_layer(layer, down)
        update = adapter.updates[state.modules[layer]]
        delta, change = update.left @ update.right.T, down.weight.detach() - state.originals[layer]
        assert (delta - change).norm() <= 1e-4 * change.norm()
        assert (delta - plain[state.modules[layer]]).norm() > 0.01 * change.norm()
        with torch.no_grad():
            down.weight.copy_(present[layer])


def test_what_is_projected_is_asked_as_it_is_in_the_weights(edited: Edited, tmp_path: Path) -> None:
    """At some lengths of the updates it matters to the answers whether they are projected."""
    down = {layer: find_architecture(edited.model).ffn(layer).down for layer in edited.state.modules}
    shares = []
    for tenths in range(1, 10):
        shorter = [
            replace(batch, layers={at: replace(u, left=u.left * (tenths / 10)) for at, u in batch.layers.items()})
            for batch in edited.state.batches
        ]
        rule = RestraintSettings("principal_directions", energy=1.0, strength=1.0)
        held = [replace(batch, settings=replace(batch.settings, restraint=rule)) for batch in shorter]
        for batches in (shorter, held):
            replace(edited.state, batches=tuple(batches)).write(down)
            shares.append(share_answered(Asked(edited.model, edited.base.tokenizer), edited.state.requests))
        state, folder = replace(edited.state, batches=tuple(held)), tmp_path / str(tenths)
        exported = export_state(state, folder, form=AdapterForm(rank=1), asked=edited.asked)
        assert exported.efficacy is not None
        assert exported.efficacy[0] == shares[-1]
    assert shares[::2] != shares[1::2]
