"""Checkpoints that a training can go on from with the result of one that was never stopped, and no others.

A checkpoint without its optimizer's state or the state of its random numbers would go on to other weights without a
word. Each says that it is unfinished before anything else is written to it, and gets a manifest
(:mod:`corsa_plugins.manifest`) in its place when it is whole: so one that was cut off is known, and is as good as not
there; one that was damaged since is known too; and one that says neither is of others.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments

from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.manifest import MANIFEST, DamagedError, check_folder, checksums, write_manifest
from corsa_plugins.model.bases import BASE
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.parsing import json_value
from corsa_plugins.temporaries import temporary_beside

__all__ = ["begin_checkpoint", "checkpoint_to_resume", "finish_checkpoint", "save_adapter"]

logger = logging.getLogger(__name__)

_NEEDED = ("trainer_state.json", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
_UNFINISHED = {"unfinished": True}
_CARD = "README.md"
_ELSEWHERE = ("seed", "output_dir", "logging_dir", "run_name", "hub_model_id", "push_to_hub", "local_rank", "report_to")


def begin_checkpoint(folder: Path) -> None:
    """Make the folder of a checkpoint, which says that it is not whole until it has its manifest; what safetensors had
    begun in one that was cut off goes."""
    for left in folder.glob(".tmp??????"):
        left.unlink(missing_ok=True)
    atomic_write_text(folder / MANIFEST, json.dumps(_UNFINISHED) + "\n")


def _was_cut_off(folder: Path) -> bool:
    try:
        if all(path.name.startswith(f".{MANIFEST}.") for path in folder.iterdir()):
            return True  # before it could say so
        return bool(json_value((folder / MANIFEST).read_text(encoding="utf-8")) == _UNFINISHED)
    except (OSError, ValueError):
        return False


def finish_checkpoint(folder: Path) -> None:
    """Give a checkpoint its manifest, once every process has written its part; every process calls this."""
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process and folder.is_dir():
        write_manifest(folder)


def save_adapter(trainer: Any, folder: Path, base: Fingerprint | None = None, **made: Any) -> None:
    """Write what ``trainer.save_model`` does, each file whole or as it was, and then a manifest of the adapter.

    Args:
        trainer: With the trained adapter.
        folder: Made where it is not there.
        base: Of the model that it was trained on, where it is known; the manifest notes it.
        made: What else it is to note beside the training's seed and arguments, JSON values.

    Raises:
        OSError, SafetensorError: It cannot be written.
    """
    if not trainer.args.should_save:
        trainer.save_model(str(folder), _internal_call=True)  # shards are gathered by all processes
        return
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_beside(folder.resolve() / "adapter", folder=True) as hidden:
        try:
            if (folder / _CARD).is_file():
                shutil.copyfile(folder / _CARD, hidden / _CARD)  # PEFT adds to what is there
            trainer.save_model(str(hidden), _internal_call=True)  # which does not push it yet
            names = [path.name for path in hidden.iterdir() if path.name.startswith(("adapter_", "tokenizer", "chat_"))]
            digests = checksums(hidden, sorted(names))
            # Where this is cut short, the manifest that was there before tells the old files from the new ones.
            for path in sorted(hidden.iterdir()):
                os.replace(path, folder / path.name)
            known = {} if base is None else {BASE: base.as_dict()}
            told = {"seed": trainer.args.seed, "arguments": _settings(trainer.args)}
            write_manifest(folder, digests, **known, **told, **made)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings of a training that are others than their defaults, but for the seed, for where things are, and for
    what is nobody else's business."""
    given = {}
    for setting in fields(args):
        value = getattr(args, setting.name, None)
        default = setting.default_factory() if setting.default_factory is not MISSING else setting.default
        if setting.name in _ELSEWHERE or "token" in setting.name.split("_") or value == default:
            continue
        given[setting.name] = json.loads(json.dumps(value, default=str))
    return given


def checkpoint_to_resume(resume: str | bool | None, args: TrainingArguments) -> str | None:
    """The folder of the checkpoint to go on from, known to be whole.

    Args:
        resume: A folder; ``True`` for the newest whole one in ``args.output_dir``; ``None`` or ``False`` for none.
        args: Of the training.

    Returns:
        ``None`` to begin: nothing is to be resumed, or with ``True`` no checkpoint was ever finished.

    Raises:
        SettingError: It is not there, lacks a part, or is damaged, the message names the file; or, with ``True``, there
            are such ones and none that is whole.
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


def _newest(output: Path, processes: int) -> str | None:
    found = [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    refused = False
    for folder in sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        problem = _problem(folder, processes)
        if problem is None and not (folder / MANIFEST).is_file():
            problem = f"{folder / MANIFEST} is missing, so it may have been cut off; name the checkpoint to trust it"
        if problem is None:
            return str(folder)
        logger.warning("%s is passed over: %s", folder, problem)
        refused = refused or not _was_cut_off(folder)
    if refused:
        raise SettingError(
            f"resume_from_checkpoint=True: there is no whole checkpoint in {output}; leave it out to begin, or name one"
        )
    logger.warning("resume_from_checkpoint=True: there is no checkpoint in %s yet, so the training begins", output)
    return None


def _problem(folder: Path, processes: int) -> str | None:
    """Why the training cannot go on from there as if it had never stopped."""
    if not folder.is_dir():
        return "there is no such folder"
    if _was_cut_off(folder):
        return "the training was stopped while it was written"
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
