"""The testbed as files that commands and transformers read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from corsa_plugins.data.reading import read_requests
from corsa_plugins.outputs import OutputError
from corsa_plugins.testbed import load_testbed
from corsa_plugins.testbed.export import write_testbed


def test_files_are_the_world_and_its_model(tmp_path: Path) -> None:
    bed = load_testbed()
    names = write_testbed(bed, tmp_path, seed=3, rounds=2, size=7)
    assert names == ["model", "round_1", "round_2", "untouched", "same_subject", "texts.txt"]
    assert sorted(path.name.removesuffix(".jsonl") for path in tmp_path.iterdir()) == sorted(names)
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


def test_a_model_that_lies_there_already_is_not_copied_onto_itself(tmp_path: Path) -> None:
    shutil.copytree(load_testbed().path, tmp_path / "model")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    bed = load_testbed()
    object.__setattr__(bed, "path", tmp_path / "model")
    write_testbed(bed, tmp_path, rounds=1, size=2)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()} == before
    with pytest.raises(OutputError, match=r"is not empty, it has round_1\.jsonl"):
        write_testbed(bed, tmp_path, rounds=1, size=2)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "round_1.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="is not empty: name a new folder"):
        write_testbed(load_testbed(), tmp_path, rounds=1, size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["round_1.jsonl"]
    assert (tmp_path / "round_1.jsonl").read_text() == "mine"
