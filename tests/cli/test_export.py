"""``corsa export`` and ``corsa import`` as a user calls them, on the testbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from corsa_plugins.adapters import read_adapter
from corsa_plugins.alphaedit import EditState
from corsa_plugins.data.reading import write_requests
from corsa_plugins.testbed import load_testbed
from tests.fixtures.adapters import Edited
from tests.support.command import Command
from tests.support.serving import assert_vllm_loads


@pytest.fixture
def folder(edited: Edited, tmp_path: Path) -> Path:
    """The state of two batches, and the model with them."""
    edited.state.save(tmp_path / "edited" / "state")
    edited.model.save_pretrained(tmp_path / "whole")
    edited.base.tokenizer.save_pretrained(tmp_path / "whole")
    edited.base.statistics.save(tmp_path / "stats")
    write_requests(tmp_path / "facts.jsonl", edited.state.requests)
    return tmp_path


def down(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.model.layers[0].mlp.down_proj.weight.detach()
    return weight


def test_a_state_out_and_back(edited: Edited, folder: Path, corsa: Command) -> None:
    base = load_testbed().path
    result = corsa("export", folder / "edited", "--adapter", folder / "all", "--model", base, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "rank 5; vLLM: --enable-lora --max-lora-rank 8" in result.output
    assert_vllm_loads(folder / "all")
    assert json.loads((folder / "all" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    own = AutoModelForCausalLM.from_pretrained(base)
    merged: Any = PeftModel.from_pretrained(own, folder / "all").merge_and_unload()
    torch.testing.assert_close(down(merged), down(edited.model), rtol=0, atol=1e-6)

    for name in ("monday", "tuesday"):
        assert corsa("export", folder / "edited", "--batch", name, "--adapter", folder / name).exit_code == 0
    same = ("--quiet", "--output")
    code = corsa("import", folder / "monday", "--model", base, "--name", "first", *same, folder / "one").exit_code
    assert code == 0
    # on from the changed model, and from the one before; the adapter of the other batch, and the same weights
    for number, (start, options) in enumerate(((folder / "one" / "model", ()), (base, ("--delta-only",)))):
        out = folder / f"two{number}"
        result = corsa("import", folder / "tuesday", "--model", start, "--state", folder / "one", *options, *same, out)
        assert "batch 2: rank 2 in 1 modules" in result.output, result.stderr
        assert "batches in force: first, 2" in result.output
        assert [batch.name for batch in EditState.load(out / "state").batches] == ["first", "2"]
    assert torch.equal(down(AutoModelForCausalLM.from_pretrained(folder / "two0" / "model")), down(edited.model))
    assert not (folder / "two1" / "model").exists()
    back = ("--state", folder / "two0", "--revert", "first", "--revert", "2", "--output", folder / "back")
    assert corsa("edit", "--model", folder / "two0" / "model", *back).exit_code == 0
    original = down(AutoModelForCausalLM.from_pretrained(base))
    assert torch.equal(down(AutoModelForCausalLM.from_pretrained(folder / "back" / "model")), original)


def test_compression_says_what_it_costs(folder: Path, corsa: Command) -> None:
    options = ("--rank", 1, "--model", load_testbed().path, "--statistics", folder / "stats", "--quiet")
    result = corsa("export", folder / "edited", *options, "--adapter", folder / "small", "--adapter-dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert "efficacy with the whole change 100.0 %, with the adapter" in result.output
    assert_vllm_loads(folder / "small", 1)
    assert {update.left.dtype for update in read_adapter(folder / "small").updates.values()} == {torch.float32}


def test_what_was_not_asked_for_want_of_an_option_is_said(folder: Path, corsa: Command) -> None:
    base, hint = load_testbed().path, "to see what fewer ranks cost in answers, give "
    result = corsa("export", folder / "edited", "--rank", 1, "--adapter", folder / "small")
    assert f"{hint}--model, the model from before the edits" in result.output, result.stderr
    assert "efficacy" not in result.output
    whole = corsa("export", folder / "edited", "--adapter", folder / "exact")
    assert hint not in whole.output  # which costs nothing
    given = ("export", folder / "whole", "--rank", 1, "--model", base, "--quiet", "--adapter")
    assert f"{hint}--requests" in corsa(*given, folder / "difference").output
    asked = corsa(*given, folder / "asked", "--requests", folder / "facts.jsonl")
    assert hint not in asked.output
    assert "efficacy with the whole change" in asked.output


def test_an_edited_model_by_its_difference(folder: Path, corsa: Command) -> None:
    options = ("--model", load_testbed().path, "--requests", folder / "facts.jsonl", "--quiet", "--adapter")
    result = corsa("export", folder / "whole", *options, folder / "exact")
    assert "rank 5" in result.output, result.stderr
    result = corsa("export", folder / "whole", "--rank", 2, *options, folder / "small")
    assert "efficacy with the whole change 100.0 %" in result.output, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "edited", "--max-rank", "4"), "--max-lora-rank 8"),
        (("export", "edited", "--batch", "friday"), "there are: monday, tuesday"),
        (("export", "edited", "--model", "whole"), "holds the batches monday, tuesday"),
        (("export", "edited", "--requests", "facts.jsonl"), "an edit state knows its own"),
        (("export", "edited", "--adapter-dtype", "int8"), "dtype is 'int8'"),
        (("export", "whole"), "give --model, the model from before"),
        (("export", "whole", "--batch", "monday"), "--batch is for edit states"),
        (("export", "whole", "--model", "whole"), "the two models are equal"),
        (("import", "whole", "--model", "whole"), "no adapter_config.json"),
        (("import", "edited", "--model", "whole", "--name", "all"), "name is 'all'"),
    ],
)
def test_wrong_usage(folder: Path, corsa: Command, arguments: tuple[str, ...], message: str) -> None:
    given = [folder / text if (folder / text).exists() else text for text in arguments[1:]]
    result = corsa(arguments[0], *given, "--adapter" if arguments[0] == "export" else "--output", folder / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (folder / "out").exists()


def test_an_adapter_of_another_base_is_refused(folder: Path, corsa: Command, world: Path) -> None:
    assert corsa("export", folder / "edited", "--adapter", folder / "all").exit_code == 0
    result = corsa("import", folder / "all", "--model", world / "model", "--output", folder / "out", "--quiet")
    assert result.exit_code == 2
    assert "it is of another base" in result.stderr
    assert not (folder / "out").exists()
