"""The testbed as files: a model, facts to edit, facts to watch, and text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from corsa_plugins.data.reading import write_requests
from corsa_plugins.files import atomic_write_text
from corsa_plugins.manifest import checksums, write_manifest
from corsa_plugins.outputs import new_directory
from corsa_plugins.testbed.build import Testbed, build_testbed, read_testbed
from corsa_plugins.testbed.recipe import TestbedRecipe
from corsa_plugins.testbed.texts import texts_of_testbed

__all__ = ["rebuild_testbed", "write_testbed"]

UNTOUCHED = 500
MODEL = "model"
"""The folder of the model, within that of all files."""


def write_testbed(
    testbed: Testbed, folder: str | os.PathLike[str], *, seed: int = 0, rounds: int = 3, size: int = 100
) -> list[str]:
    """Write a testbed as what commands read.

    Args:
        testbed: Its model is copied to ``folder/model``.
        folder: New or empty; it is there whole or not at all. It gets ``round_1.jsonl``, ``round_2.jsonl``, ... (edit
            requests), ``untouched.jsonl`` (500 facts of people whom no round edits), ``same_subject.jsonl`` (the other
            facts of the edited people), ``texts.txt`` (documents of the kind it was trained on), and ``manifest.json``
            (the seed, the sizes, the testbed's recipe, checksums).
        seed: Which facts are edited, and to what.
        rounds: How many rounds.
        size: Edits in a round.

    Returns:
        The names of what was written, those of requests without their suffix.

    Raises:
        OutputError: The folder is not empty, or cannot be written.
    """
    with new_directory(folder) as partial:
        shutil.copytree(testbed.path, partial / MODEL)
        return _write_files(testbed, partial, seed, rounds, size)


def rebuild_testbed(
    recipe: TestbedRecipe, folder: str | os.PathLike[str], *, seed: int = 0
) -> tuple[Testbed, list[str]]:
    """Train a testbed from nothing and write it as :func:`write_testbed` does; one that is killed begins anew.

    Returns:
        The testbed, as read from ``folder/model``, and the names of what was written.

    Raises:
        OutputError: The folder is not empty, or cannot be written.
    """
    with new_directory(folder) as partial:
        written = _write_files(build_testbed(recipe, partial / MODEL), partial, seed)
    return read_testbed(Path(folder) / MODEL), written


def _write_files(testbed: Testbed, target: Path, seed: int, rounds: int = 3, size: int = 100) -> list[str]:
    plan = testbed.world.edit_rounds(n_rounds=rounds, size=size, seed=seed, untouched=UNTOUCHED)
    files = {f"round_{number}": requests for number, requests in enumerate(plan.rounds, start=1)}
    files |= {"untouched": plan.untouched, "same_subject": plan.same_subject}
    for name, requests in files.items():
        write_requests(target / f"{name}.jsonl", requests)
    atomic_write_text(target / "texts.txt", "".join(f"{text}\n" for text in texts_of_testbed(testbed, 3000)))
    written = [*(f"{name}.jsonl" for name in files), "texts.txt"]
    settings = {"rounds": rounds, "size": size, "untouched": UNTOUCHED}
    write_manifest(target, checksums(target, written), recipe=testbed.recipe.key(), seed=seed, settings=settings)
    return [MODEL, *files, "texts.txt"]
