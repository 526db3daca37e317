"""A stopped training goes on as if it had never stopped, or it says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.errors import SettingError
from corsa_plugins.manifest import check_folder
from tests.support.flips import flip
from tests.trl_ext.conftest import MakeTrainer, flat
from trl_ext.checkpoints import begin_checkpoint, checkpoint_to_resume, save_adapter

SETTINGS: dict[str, Any] = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear", "optim": "adamw_torch",
    "train_sampling_strategy": "random",
}  # fmt: skip


@pytest.fixture
def checkpoints(make_trainer: MakeTrainer, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """The folder of an unbroken training with a checkpoint after each of its four steps, and its parameters."""
    trainer = make_trainer(**SETTINGS)
    trainer.train()
    return tmp_path / "out", flat(trainer._parameters)


def resumed(make_trainer: MakeTrainer, resume: Any) -> torch.Tensor:
    trainer = make_trainer(**SETTINGS)
    trainer.train(resume_from_checkpoint=resume)
    return flat(trainer._parameters)


def test_a_resumed_training_is_the_unbroken_one(
    checkpoints: tuple[Path, torch.Tensor], make_trainer: MakeTrainer
) -> None:
    folder, unbroken = checkpoints
    assert torch.equal(resumed(make_trainer, str(folder / "checkpoint-2")), unbroken)
    # the last was killed while it was written, the one before has been damaged since
    for name in ("trainer_state.json", "rng_state.pth", "manifest.json"):
        (folder / "checkpoint-4" / name).unlink()
    flip(folder / "checkpoint-3" / "optimizer.pt", 4001)
    assert torch.equal(resumed(make_trainer, True), unbroken)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]
)
def test_a_checkpoint_without_a_part_or_with_a_damaged_one_is_refused(
    checkpoints: tuple[Path, torch.Tensor], make_trainer: MakeTrainer, name: str
) -> None:
    folder = checkpoints[0] / "checkpoint-2"
    args = make_trainer(**SETTINGS).args
    assert checkpoint_to_resume(str(folder), args) == str(folder)
    content = (folder / name).read_bytes()
    for damaged in (content[:-7], content[:40] + bytes([content[40] ^ 1]) + content[41:], None):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        with pytest.raises(SettingError, match=rf"resume_from_checkpoint=.*{name} is (not the file|missing)"):
            checkpoint_to_resume(str(folder), args)
        (folder / name).write_bytes(content)


def test_what_there_is_nothing_to_go_on_from(
    checkpoints: tuple[Path, torch.Tensor], make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints[0]
    trainer = make_trainer(**SETTINGS)
    assert checkpoint_to_resume(None, trainer.args) is None
    with pytest.raises(SettingError, match="nowhere: there is no such folder"):
        trainer.train(resume_from_checkpoint="nowhere")
    (folder / "checkpoint-4" / "rng_state.pth").rename(folder / "checkpoint-4" / "rng_state_0.pth")
    with pytest.raises(SettingError, match=r"rng_state\.pth is missing; it is of 1 processes"):
        checkpoint_to_resume(folder / "checkpoint-4", trainer.args)
    (folder / "checkpoint-3" / "manifest.json").unlink()  # of an earlier version, or of others
    assert checkpoint_to_resume("true", trainer.args) == str(folder / "checkpoint-2")
    assert "checkpoint-4 is passed over" in caplog.text
    assert "checkpoint-3/manifest.json is missing, so it may have been cut off" in caplog.text
    assert checkpoint_to_resume(folder / "checkpoint-3", trainer.args) == str(folder / "checkpoint-3")
    assert "checkpoint-3 has no manifest" in caplog.text
    for number in (1, 2):
        (folder / f"checkpoint-{number}" / "optimizer.pt").unlink()
        (folder / "checkpoint-3" / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(SettingError, match="there is no whole checkpoint in"):
        checkpoint_to_resume(True, trainer.args)


@pytest.mark.parametrize("left", [None, ".manifest.json.a1b2c3d4.part"])
def test_a_checkpoint_that_was_cut_off_before_it_could_say_so_is_none(
    make_trainer: MakeTrainer, tmp_path: Path, left: str | None
) -> None:
    cut = tmp_path / "out" / "checkpoint-1"
    cut.mkdir(parents=True)
    if left:
        (cut / left).touch()
    args = make_trainer(**SETTINGS).args
    assert checkpoint_to_resume(True, args) is None
    (cut / "optimizer.pt").touch()
    with pytest.raises(SettingError, match="there is no whole checkpoint"):
        checkpoint_to_resume(True, args)


def test_what_safetensors_had_begun_in_a_checkpoint_goes_when_it_is_written_again(tmp_path: Path) -> None:
    begin_checkpoint(tmp_path)
    for name in (".tmpa1B2c3", "optimizer.pt"):
        (tmp_path / name).touch()
    begin_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "optimizer.pt"]


def test_where_no_checkpoint_was_ever_finished_the_training_begins(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stopped while its first checkpoint is written goes on by the same call as anything else."""
    trainer = make_trainer(**SETTINGS)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    trainer._save_optimizer_and_scheduler = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=True)
    assert "there is no checkpoint in" in caplog.text
    (cut,) = (tmp_path / "out").glob("checkpoint-*")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (cut / name).touch()  # the last moment: all its files have their names
    with pytest.raises(SettingError, match="checkpoint-1: the training was stopped while it was written"):
        checkpoint_to_resume(str(cut), trainer.args)
    begun = resumed(make_trainer, True)
    assert "checkpoint-1 is passed over" in caplog.text
    unbroken = make_trainer(**SETTINGS, output_dir=str(tmp_path / "unbroken"))
    unbroken.train()
    assert torch.equal(begun, flat(unbroken._parameters))
    assert check_folder(cut), "it is written whole now"


def test_the_old_checkpoint_goes_when_the_new_one_is_whole(
    checkpoints: tuple[Path, torch.Tensor], make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With room for one, a training that is stopped before that goes on from the old one."""
    folder, settings = tmp_path / "one", SETTINGS | {"save_total_limit": 1, "output_dir": str(tmp_path / "one")}
    trainer = make_trainer(**settings)
    finish = trainer.after_checkpoint

    def stop(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-2":
            raise KeyboardInterrupt
        finish(checkpoint)

    trainer.after_checkpoint = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["checkpoint-1", "checkpoint-2"]
    trainer = make_trainer(**settings)
    trainer.train(resume_from_checkpoint=True)
    assert "there is no checkpoint" not in caplog.text
    assert torch.equal(flat(trainer._parameters), checkpoints[1])
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["checkpoint-4"]
    assert trainer.args.save_total_limit == 1
    assert torch.load(folder / "checkpoint-4" / "training_args.bin", weights_only=False).save_total_limit == 1


def test_a_saved_adapter_replaces_the_one_before_it_whole(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    save_adapter(trainer, tmp_path / "saved")
    assert check_folder(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "README.md"}
    (tmp_path / "saved" / "README.md").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    trainer.train()
    original = trainer.model.save_pretrained

    def half(folder: str, **settings: Any) -> None:
        original(folder, **settings)
        raise KeyboardInterrupt

    trainer.model.save_pretrained = half
    with pytest.raises(KeyboardInterrupt):
        save_adapter(trainer, tmp_path / "saved")
    assert {path: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    trainer.model.save_pretrained = original
    save_adapter(trainer, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == names
    assert "mine" in (tmp_path / "saved" / "README.md").read_text()
    after = (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()
    assert after != before[tmp_path / "saved" / "adapter_model.safetensors"]
    assert check_folder(tmp_path / "saved")
