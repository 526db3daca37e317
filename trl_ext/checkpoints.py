"""Checkpoints that a training can go on from with the result of one that was never stopped, and no others.

A checkpoint without its optimizer's state or the state of its random numbers would go on to other weights without a
word. Each gets a manifest (:mod:`corsa_plugins.manifest`) when it is whole, so that one that was cut off is known, and
so is one that was damaged since.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from corsa_plugins.errors import SettingError
from corsa_plugins.manifest import MANIFEST, DamagedError, check_folder, checksums, write_manifest

__all__ = ["ManifestCallback", "checkpoint_to_resume", "save_adapter"]

logger = logging.getLogger(__name__)

_NEEDED = ("trainer_state.json", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt")


class ManifestCallback(TrainerCallback):
    """Gives every checkpoint a manifest when all of it has been written, by all processes."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint of this step is written."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        PartialState().wait_for_everyone()
        if state.is_world_process_zero and folder.is_dir():
            write_manifest(folder)


def save_adapter(trainer: Any, folder: Path) -> None:
    """``trainer.save_model``, with a manifest of what it writes.

    Raises:
        OSError, SafetensorError: It cannot be written.
    """
    if trainer.args.should_save:
        (folder / MANIFEST).unlink(missing_ok=True)
    trainer.save_model(str(folder))
    if trainer.args.should_save:
        names = [path.name for path in folder.iterdir() if path.name.startswith(("adapter_", "tokenizer", "chat_"))]
        write_manifest(folder, checksums(folder, sorted(names)))


def checkpoint_to_resume(resume: str | bool | None, args: TrainingArguments) -> str | None:
    """The folder of the checkpoint to go on from, known to be whole.

    Args:
        resume: A folder; ``True`` for the newest whole one in ``args.output_dir``; ``None`` or ``False`` for none.
        args: Of the training.

    Raises:
        SettingError: It is not there, lacks a part, or is damaged; the message names the file.
    """
    if not resume:
        return None
    if resume is True or (str(resume).lower() == "true" and not Path(resume).is_dir()):
        return _newest(Path(args.output_dir or "."), args.world_size)
    problem = _problem(Path(resume), args.world_size)
    if problem is not None:
        raise SettingError(
            f"resume_from_checkpoint={resume}: {problem}; what went on from there would not be the same training. Name "
            "another checkpoint, or begin anew without it."
        )
    return str(resume)


def _newest(output: Path, processes: int) -> str:
    found = [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for folder in sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        problem = _problem(folder, processes)
        if problem is None and not (folder / MANIFEST).is_file():
            problem = f"{folder / MANIFEST} is missing, so it may have been cut off; name the checkpoint to trust it"
        if problem is None:
            return str(folder)
        logger.warning("%s is passed over: %s", folder, problem)
    raise SettingError(
        f"resume_from_checkpoint=True: there is no whole checkpoint in {output}; leave it out to begin, or name one"
    )


def _problem(folder: Path, processes: int) -> str | None:
    """Why the training cannot go on from there as if it had never stopped."""
    if not folder.is_dir():
        return "there is no such folder"
    randoms = ["rng_state.pth"] if processes == 1 else [f"rng_state_{number}.pth" for number in range(processes)]
    for name in (*_NEEDED, *randoms):
        if not (folder / name).is_file():
            count = len(list(folder.glob("rng_state*.pth")))
            other = f"; it is of {count} processes, and these are {processes}" if name in randoms and count else ""
            return f"{folder / name} is missing{other}"
    try:
        if not check_folder(folder, *_NEEDED, *randoms):
            logger.warning("%s has no manifest with checksums: damage to it may go unnoticed", folder)
    except DamagedError as error:
        return str(error)
    return None
