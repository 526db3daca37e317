"""An edit state on disk: whole, exact, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from corsa_plugins.alphaedit import AlphaEditor, EditState, StateError
from tests.fixtures.alphaedit import LATER, REQUESTS, SETTINGS, Bench
from tests.support.flips import flipped_copies


def test_a_saved_state_continues_with_identical_results(llama_bench: Bench, tmp_path: Path) -> None:
    original, other = llama_bench.copy(), llama_bench.copy()
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
    assert llama_bench.holds(other.weights())
    there.revert("1")
    there.revert("2")
    assert other.holds(original.weights())


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


def test_one_flipped_bit_anywhere_is_noticed(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS[:1], answers=False)
    folder = here.state.save(tmp_path / "edits")
    assert EditState.load(folder).batches
    for name in ("state.safetensors", "state.json", "manifest.json"):
        for flipped in flipped_copies(folder, name, 12):
            with pytest.raises(StateError, match=name):
                EditState.load(flipped)


def test_a_state_from_before_manifests_is_read_with_a_warning(
    llama_bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS[:1], answers=False)
    folder = here.state.save(tmp_path / "edits")
    caplog.clear()
    EditState.load(folder)
    assert not caplog.messages
    (folder / "manifest.json").unlink()
    EditState.load(folder).save(folder)
    assert "edits has no manifest.json with checksums" in caplog.text
    caplog.clear()
    EditState.load(folder)
    assert not caplog.messages


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
    (folder / "manifest.json").unlink()
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


def test_a_state_of_a_later_version_is_not_called_damaged_alone(llama_bench: Bench, tmp_path: Path) -> None:
    here = llama_bench.editor()
    here.edit(REQUESTS[:1], answers=False)
    folder = here.state.save(tmp_path / "edits")
    (folder / "manifest.json").unlink()
    described = json.loads((folder / "state.json").read_text())
    described["batches"][0]["settings"]["novelty"] = 1
    (folder / "state.json").write_text(json.dumps(described))
    with pytest.raises(StateError, match=r"of another version.*novelty is no setting"):
        EditState.load(folder)
