"""The testbed as files that commands and transformers read."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corsa_plugins.data.reading import read_requests
from corsa_plugins.files import atomic_write_text
from corsa_plugins.manifest import checksums, read_manifest
from corsa_plugins.outputs import OutputError
from corsa_plugins.testbed import TestbedRecipe, WorldConfig, export, load_testbed, reduced_recipe
from corsa_plugins.testbed.build import read_testbed
from corsa_plugins.testbed.export import rebuild_testbed, write_testbed
from corsa_plugins.testbed.manifest import check_manifest
from tests.support.forks import forks


def test_files_are_the_world_and_its_model(tmp_path: Path) -> None:
    bed = load_testbed()
    names = write_testbed(bed, tmp_path, seed=3, rounds=2, size=7)
    assert names == ["model", "round_1", "round_2", "untouched", "same_subject", "texts.txt"]
    there = sorted(path.name.removesuffix(".jsonl") for path in tmp_path.iterdir())
    assert there == sorted([*names, "manifest.json"])
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    manifest.check(*(f"{name}.jsonl" for name in names if (tmp_path / f"{name}.jsonl").exists()), "texts.txt")
    assert (manifest.about["seed"], manifest.about["settings"]["size"]) == (3, 7)
    assert manifest.about["recipe"] == bed.recipe.key()
    assert "torch" in manifest.about["versions"]
    plan = bed.world.edit_rounds(n_rounds=2, size=7, seed=3, untouched=500)
    assert [read_requests(tmp_path / f"round_{number}.jsonl") for number in (1, 2)] == list(plan.rounds)
    assert read_requests(tmp_path / "untouched.jsonl") == list(plan.untouched)
    assert read_requests(tmp_path / "same_subject.jsonl") == list(plan.same_subject)
    assert len((tmp_path / "texts.txt").read_text(encoding="utf-8").splitlines()) == 3000

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    request = plan.rounds[0][0]
    ids = tokenizer(request.prompt, return_tensors="pt").input_ids
    assert (model(ids).logits == bed.model(ids).logits).all()


SMALL = TestbedRecipe(
    world=WorldConfig(n_subjects=200, n_relations=5, n_answers=6), model=reduced_recipe().model,
    training=replace(reduced_recipe().training, steps=1),
)  # fmt: skip
"""What is trained hardly at all; its world is large enough to draw rounds from."""


def rebuild(folder: Path, killed_at: str | None = None) -> None:
    """Builds a testbed; is killed where a file of such a name is to be written."""

    def write(path: Path, text: str) -> None:
        if path.name == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        atomic_write_text(path, text)

    export.atomic_write_text = write  # type: ignore[assignment]
    torch.set_num_threads(1)
    rebuild_testbed(SMALL, folder, seed=1)


def test_a_rebuilt_testbed_is_there_whole_or_not_at_all_and_the_same_call_begins_anew(tmp_path: Path) -> None:
    for killed_at in ("texts.txt", None):
        process = forks().Process(target=rebuild, args=(tmp_path / "world", killed_at))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if killed_at else 0)
        assert (tmp_path / "world").exists() == (killed_at is None)
    assert [path.name for path in tmp_path.iterdir()] == ["world"], "what was killed has left nothing"
    bed = read_testbed(tmp_path / "world" / "model")
    check_manifest(bed.path, SMALL.key())
    write_testbed(bed, tmp_path / "again", seed=1)
    assert checksums(tmp_path / "world") == checksums(tmp_path / "again")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "round_1.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="is not empty: name a new folder"):
        write_testbed(load_testbed(), tmp_path, rounds=1, size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["round_1.jsonl"]
    assert (tmp_path / "round_1.jsonl").read_text() == "mine"
