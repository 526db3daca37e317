"""The state of an editor on disk: whole, exact, and of one model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from corsa_plugins.alphaedit import AlphaEditor, EditState, StateError
from corsa_plugins.alphaedit.settings import AlphaEditSettings, preset_names
from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import LATER, REQUESTS, SETTINGS, Bench


def _copy(bench: Bench) -> Bench:
    return replace(bench, model=copy.deepcopy(bench.model))


def _same(first: Bench, second: Bench) -> bool:
    ours, theirs = first.weights(), second.weights()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_state_continues_with_identical_results(llama_bench: Bench, tmp_path: Path) -> None:
    original, other = _copy(llama_bench), _copy(llama_bench)
    here = llama_bench.editor()
    here.edit(REQUESTS)
    here.state.save(tmp_path / "edits")
    report = here.edit(LATER)

    loaded = EditState.load(tmp_path / "edits")
    assert loaded.batches[0].requests == tuple(REQUESTS)
    assert loaded.batches[0].settings == SETTINGS
    assert loaded.batches[0].report == here.state.batches[0].report
    # onto the original model, whose weights are put in place first
    there = AlphaEditor(other.model, other.tokenizer, other.statistics, SETTINGS, state=loaded)
    there.apply()
    assert there.edit(LATER) == report
    assert _same(llama_bench, other)
    there.revert("1")
    there.revert("2")
    assert _same(other, original)


def test_a_model_that_has_the_edits_already_is_recognised(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS)
    here.state.save(tmp_path / "edits")
    before = llama_bench.weights()
    there = AlphaEditor(
        llama_bench.model, llama_bench.tokenizer, None, SETTINGS, state=EditState.load(tmp_path / "edits")
    )
    there.apply()
    assert all(torch.equal(weight, before[name]) for name, weight in llama_bench.weights().items())


def test_another_precision_is_refused(llama_bench: Bench) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS)
    state = here.state
    llama_bench.model.bfloat16()
    with pytest.raises(StateError, match=r"made in torch.float32, and .* is torch.bfloat16"):
        AlphaEditor(llama_bench.model, llama_bench.tokenizer, None, SETTINGS, state=state)


def test_saving_is_all_or_nothing(llama_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS[:1])
    here.state.save(tmp_path / "edits")
    here.edit(REQUESTS[1:])
    import safetensors.torch

    original = safetensors.torch.save_file

    def full(tensors: object, path: Path) -> None:
        original(tensors, path)
        with path.open("r+b") as stream:
            stream.truncate(100)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            here.state.save(tmp_path / "edits")
    assert [path.name for path in tmp_path.iterdir()] == ["edits"]
    assert [batch.name for batch in EditState.load(tmp_path / "edits").batches] == ["1"]
    here.state.save(tmp_path / "edits")
    assert [batch.name for batch in EditState.load(tmp_path / "edits").batches] == ["1", "2"]


def test_damage_is_named(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS[:1])
    with pytest.raises(StateError, match="is no edit state"):
        EditState.load(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StateError, match="a folder with other files"):
        here.state.save(tmp_path)
    assert (tmp_path / "notes.txt").exists()

    folder = here.state.save(tmp_path / "edits")
    tensors = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(tensors[:-10])
    with pytest.raises(StateError, match="damaged"):
        EditState.load(folder)
    (folder / "state.safetensors").write_bytes(tensors)
    described = json.loads((folder / "state.json").read_text())
    for broken in ({**described, "format": 99}, {**described, "tensors": []}, {"format": 1}, []):
        (folder / "state.json").write_text(json.dumps(broken))
        with pytest.raises(StateError, match=r"edits (has format 99|is damaged)"):
            EditState.load(folder)


def test_nothing_else_in_the_folder_is_lost(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    folder = here.state.save(f"{tmp_path}/edits/")
    assert EditState.load(folder).batches == ()
    (tmp_path / "link").symlink_to(folder)
    here.edit(REQUESTS[:1], answers=False)
    here.state.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert [batch.name for batch in EditState.load(folder).batches] == ["1"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StateError, match="a folder with other files"):
        here.state.save(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        here.state.save(tmp_path / "file")


def test_a_changed_original_is_noticed(llama_bench: Bench, tmp_path: Path) -> None:
    """Taking edits back would put the wrong weights in place."""
    here = llama_bench.editor()
    here.edit(REQUESTS[:1], answers=False)
    folder = here.state.save(tmp_path / "edits")
    tensors = load_file(folder / "state.safetensors")
    for name, message in (
        ("original.1", "original weight of layer 1 has changed"),
        ("batch.0.0.keys", "batch 1 has other shapes at layer 0"),
        ("batch.0.1.left", "batch 1 has other shapes at layer 1"),
        ("batch.0.1.right", "batch 1 has other shapes at layer 1"),
    ):
        changed = tensors[name].clone()
        changed[0, 0] += 1
        save_file(
            {**tensors, name: changed if "original" in name else changed[:, :0].clone()}, folder / "state.safetensors"
        )
        with pytest.raises(StateError, match=message):
            EditState.load(folder)
    save_file(tensors, folder / "state.safetensors")
    described = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**described, "marks": described["marks"][:1]}))
    with pytest.raises(StateError, match="checksums of other batches"):
        EditState.load(folder)


def test_a_state_of_a_larger_model_is_of_another_model(llama_bench: Bench) -> None:
    """Not a wrong setting of layers, as it looks where the layers are looked up first."""
    here = llama_bench.editor(layers=(1,))
    here.edit(REQUESTS[:1], answers=False)
    config = copy.deepcopy(llama_bench.model.config)
    config.num_hidden_layers = 1
    with pytest.raises(StateError, match="made on another model"):
        AlphaEditor(
            type(llama_bench.model)(config), llama_bench.tokenizer, None, replace(SETTINGS, layers=(0,)),
            state=here.state,
        )  # fmt: skip


def test_a_state_of_a_later_version_is_not_called_damaged_alone(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS[:1], answers=False)
    folder = here.state.save(tmp_path / "edits")
    described = json.loads((folder / "state.json").read_text())
    described["batches"][0]["settings"]["novelty"] = 1
    (folder / "state.json").write_text(json.dumps(described))
    with pytest.raises(StateError, match=r"of another version.*novelty is no setting"):
        EditState.load(folder)


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name: str) -> None:
    settings = AlphaEditSettings.load(name)
    assert AlphaEditSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
    assert settings.search is not None
    assert settings.alphaedit().search is None


def test_settings_refuse_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"ridgee is no setting: did you mean ridge\?"):
        AlphaEditSettings.from_dict({"layers": [1], "ridgee": 1})
    with pytest.raises(SettingError, match=r"values\.step is no setting: did you mean steps\?"):
        AlphaEditSettings.from_dict({"layers": [1], "values": {"step": 1}})
    with pytest.raises(SettingError, match="layers is missing"):
        AlphaEditSettings.from_dict({})
    with pytest.raises(SettingError, match=r"^values\.lr is -1"):
        AlphaEditSettings.from_dict({"layers": [1], "values": {"lr": -1}})
    for layers in ([], [2, 1], [1, 1], "1", [-1], [True], None):
        with pytest.raises(SettingError, match="layers is"):
            AlphaEditSettings.from_dict({"layers": layers})
    for name, value in {
        "ridge": 0,
        "ridge_unit": "relativ",
        "prior_weight": float("nan"),
        "search": "off",
        "conflict_weights": 1,
        "n_contexts": -1,
        "dtype": "float16",
        "reach": 2,
    }.items():
        with pytest.raises(SettingError, match=f"{name} is"):
            AlphaEditSettings.from_dict({"layers": [1], name: value})
    with pytest.raises(SettingError, match=r"llama9: no such file .*, nor a preset; the presets are .*testbed"):
        AlphaEditSettings.load("llama9")
    (tmp_path / "bad.yaml").write_text("layers: [1\n")
    with pytest.raises(SettingError, match=r"bad\.yaml is not YAML"):
        AlphaEditSettings.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingError, match="should be a mapping"):
        AlphaEditSettings.load(tmp_path / "list.yaml")


def test_settings_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"layers: [1]\n# \xff\n")
    with pytest.raises(SettingError, match=r"bytes\.yaml is not UTF-8"):
        AlphaEditSettings.load(tmp_path / "bytes.yaml")
