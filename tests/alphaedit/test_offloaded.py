"""Edits of a model that lies partly on disk: statistics, weights and states are those of the model in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from corsa_plugins.alphaedit.edited import editor_with, load_edited, save_edited
from corsa_plugins.alphaedit.state import EditState
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.errors import SettingError
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.placement import Placement, is_offloaded, named_values
from corsa_plugins.model.stored import check_target
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import LATER, REQUESTS
from tests.support.placed import device_map, in_parts, weights_kept

pytest.importorskip("accelerate")


@pytest.fixture
def parts_bench(llama_bench, tmp_path):
    return replace(llama_bench, model=in_parts(llama_bench.model, llama_bench.tokenizer, tmp_path / "model"))


def values(model):
    return {name: value.clone() for name, value in named_values(model)}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_statistics_are_the_same(parts_bench, llama_bench):
    own = collect_statistics(parts_bench.model, parts_bench.tokenizer, TEXTS, (0, 1), n_tokens=10**6, sample_size=64)
    for layer in (0, 1):
        assert torch.equal(own.moment(layer), llama_bench.statistics.moment(layer))
    own.check(llama_bench.model)


def test_edits_are_the_same_and_reverted_bit_for_bit(parts_bench, llama_bench, tmp_path):
    originals = values(llama_bench.model)
    editors = [bench.editor() for bench in (parts_bench, llama_bench)]
    for requests, name in ((REQUESTS, "first"), (LATER, "later")):
        reports = [editor.edit(requests, name=name) for editor in editors]
        assert reports[0] == reports[1]
        assert equal(values(parts_bench.model), values(llama_bench.model))
    assert not equal(values(parts_bench.model), originals)
    assert parts_bench.model.model.layers[0].self_attn.q_proj.weight.is_meta

    save_edited(editors[0], tmp_path / "edited")
    whole = load_model(tmp_path / "edited" / "model", device="cpu")[0]
    assert equal(values(whole), values(llama_bench.model))
    placement = Placement(device_map(whole))
    editors[0].state.save(tmp_path / "state")
    for edited in ("edited", "state"):
        again, _ = load_edited(tmp_path / "model", tmp_path / edited, device=placement)
        assert is_offloaded(again)
        assert equal(values(again), values(whole))

    for editor in editors:
        editor.revert("first")
    assert equal(values(parts_bench.model), values(llama_bench.model))
    editors[0].revert_all()
    assert equal(values(parts_bench.model), originals)
    # and by an editor that never saw the weights in memory
    fresh = replace(parts_bench, model=in_parts(whole, parts_bench.tokenizer, tmp_path / "edited" / "model"))
    state = EditState.load(tmp_path / "state")
    editor = editor_with(fresh.model, fresh.tokenizer, None, fresh.settings, state)
    editor.revert_all()
    assert equal(values(fresh.model), originals)


def test_a_search_keeps_no_weight_that_was_fetched(parts_bench, llama_bench):
    editor = parts_bench.editor(layers=(0,))
    with weights_kept(llama_bench.model) as kept:
        editor.values(REQUESTS)
    in_memory = {name for name, parameter in parts_bench.model.named_parameters() if not parameter.is_meta}
    assert kept  # of the block that is in memory
    assert kept <= in_memory


def test_whatever_is_raised_the_weights_are_as_before(parts_bench, monkeypatch):
    before = values(parts_bench.model)
    editor = parts_bench.editor()
    monkeypatch.setattr(type(editor.state), "with_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        editor.edit(REQUESTS)
    assert equal(values(parts_bench.model), before)


def test_the_folder_that_it_is_read_from_is_not_replaced(parts_bench, llama_bench, tmp_path):
    editor = parts_bench.editor(values=replace(parts_bench.settings.values, batch_size=None))
    editor.edit(REQUESTS[:1])
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for folder, message in (
        ("model", "model is the folder of the model itself"),
        ("link", "link is the folder of the model itself"),
        ("", "holds .*model.safetensors, from which offloaded parts"),
    ):
        with pytest.raises(SettingError, match=message):
            save_edited(editor, tmp_path / folder)
    again = load_model(tmp_path / "model", device="cpu")[0]
    assert equal(values(again), values(llama_bench.model))
    save_edited(editor, tmp_path / "model" / "edited")  # beside what is read
    # in one place nothing is read any more: a folder with the model in it may be replaced
    whole = load_model(tmp_path / "model" / "edited" / "model", device="cpu")[0]
    check_target(whole, tmp_path / "model" / "edited")
    with pytest.raises(SettingError, match="name another"):
        check_target(whole, tmp_path / "model" / "edited" / "model")
