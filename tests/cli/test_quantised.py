"""Commands on a model that is quantised as it is read, as a user calls them: what they leave is the edits alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from corsa_plugins.testbed import load_testbed
from corsa_plugins.testbed.corpus import facts_as_text
from tests.support.command import Command

pytest.importorskip("torchao")
pytest.importorskip("accelerate")


def test_edit_go_on_take_back_evaluate_and_export(edits: Path, corsa: Command) -> None:
    bed = load_testbed()
    texts = [text.replace("\n", " ") for text in itertools.islice(facts_as_text(bed.world), 1500)]
    (edits / "text.txt").write_text("\n".join(texts))
    model = ("--model", bed.path, "--dtype", "int8", "--quiet")
    told = corsa(
        "stats", *model, "--text", edits / "text.txt", "--layers", "0", "--tokens", "20k", "--output", edits / "own"
    )
    assert told.exit_code == 0, told.stderr

    same = (*model, "--settings", "testbed", "--statistics")
    asked = ("--requests", edits / "first.jsonl")
    told = corsa("edit", *same, edits / "stats", *asked, "--output", edits / "no")
    assert told.exit_code == 2
    assert "_proj.weight is 128 x 128 and quantised" in told.stderr
    assert not (edits / "no").exists()

    told = corsa("edit", *same, edits / "own", *asked, "--name", "one", "--output", edits / "one")
    assert told.exit_code == 0, told.stderr
    report = json.loads((edits / "one" / "report.json").read_text())
    edited = [request["edited"] for request in report["requests"]]
    assert sum(edited) >= 2
    assert sorted(path.name for path in (edits / "one").iterdir()) == ["README.md", "adapter", "report.json", "state"]

    told = corsa("evaluate", *model, *asked, "--edited", edits / "one", "--output", edits / "results")
    assert told.exit_code == 0, told.stderr
    metrics = json.loads((edits / "results" / "summary.json").read_text())["metrics"]
    assert metrics["efficacy_top1"]["mean"] == pytest.approx(sum(edited) / len(edited))

    assert corsa("export", edits / "one", "--adapter", edits / "out", "--quiet").exit_code == 0
    exported, written = (
        load_file(folder / "adapter_model.safetensors") for folder in (edits / "out", edits / "one" / "adapter")
    )
    assert {name: tensor.tolist() for name, tensor in exported.items()} == {
        name: tensor.tolist() for name, tensor in written.items()
    }
    told = corsa("import", edits / "out", *model, "--output", edits / "back")
    assert told.exit_code == 0, told.stderr
    assert (edits / "back" / "adapter").is_dir()

    told = corsa(
        "edit", *same, edits / "own", "--state", edits / "one", "--revert", "one", "--requests", edits / "second.jsonl",
        "--name", "two", "--output", edits / "two",
    )  # fmt: skip
    assert told.exit_code == 0, told.stderr
    assert "batches in force: two" in told.output
    told = corsa("edit", *model, "--state", edits / "two", "--revert", "two", "--output", edits / "none")
    assert told.exit_code == 0, told.stderr
    assert sorted(path.name for path in (edits / "none").iterdir()) == ["README.md", "state"]
