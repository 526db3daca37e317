"""Commands on a model in parts, as a user calls them: what comes of it is what comes of the model in one place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corsa_plugins.cli.values import parse_device_map, parse_max_memory, place
from corsa_plugins.errors import SettingError
from corsa_plugins.model.placement import Placement
from corsa_plugins.testbed import load_testbed
from tests.support.command import Command
from tests.support.placed import device_map

pytest.importorskip("accelerate")


def test_edit_and_evaluate(edits: Path, corsa: Command) -> None:
    bed = load_testbed()
    (edits / "map.json").write_text(json.dumps(device_map(bed.model, kept=-1)))
    results = {}
    for name, placed in (("one", ()), ("parts", ("--device-map", edits / "map.json"))):
        given = ("--model", bed.path, "--requests", edits / "first.jsonl", "--quiet", *placed)
        told = corsa("edit", *given, "--statistics", edits / "stats", "--settings", "testbed", "--output", edits / name)
        assert told.exit_code == 0, told.stderr
        assert "3 of 3 requests edited" in told.output
        told = corsa("evaluate", *given, "--edited", edits / name, "--output", edits / f"{name}-results")
        assert told.exit_code == 0, told.stderr
        summary = json.loads((edits / f"{name}-results" / "summary.json").read_text())
        results[name] = load_file(edits / name / "model" / "model.safetensors"), summary["metrics"]
    assert results["one"][1] == results["parts"][1]
    assert results["one"][0].keys() == results["parts"][0].keys()
    assert all(torch.equal(weight, results["parts"][0][name]) for name, weight in results["one"][0].items())


def test_what_options_say() -> None:
    assert place(None, None, None) is None
    assert place("cuda:1", None, None) == "cuda:1"
    assert place(None, None, "0=1GiB") == place(None, "auto", "0=1GiB") == Placement("auto", {0: "1GiB"})
    assert place(None, '{"": "cpu"}', None) == Placement({"": "cpu"})
    for more in (("auto", None), (None, "0=1GiB")):
        with pytest.raises(SettingError, match="--device cpu and --device-map: give one"):
            place("cpu", *more)


def test_a_map_that_is_none_is_named(edits: Path, corsa: Command) -> None:
    given = ("--model", load_testbed().path, "--requests", edits / "first.jsonl", "--quiet")
    told = corsa("evaluate", *given, "--device-map", "all")
    assert told.exit_code == 2
    assert "--device-map is 'all'" in told.stderr
    told = corsa("evaluate", *given, "--device-map", '{"model.nothing": "cpu"}')
    assert told.exit_code == 2
    assert "device_map: LlamaForCausalLM has no module 'model.nothing'" in told.stderr


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("auto", "auto"),
        ("balanced_low_0", "balanced_low_0"),
        ('{"": 0}', {"": 0}),
        ('{"model.norm": "1", "lm_head": "disk"}', {"model.norm": 1, "lm_head": "disk"}),
    ],
)
def test_device_maps_are_read(text: str, read: object, tmp_path: Path) -> None:
    assert parse_device_map(text) == read
    if text.startswith("{"):
        (tmp_path / "map.json").write_text(text)
        assert parse_device_map(str(tmp_path / "map.json")) == read


@pytest.mark.parametrize("text", ["automatic", "{", "[1]", '{"lm_head": null}', '{"lm_head": [0]}'])
def test_what_is_no_device_map(text: str) -> None:
    with pytest.raises(SettingError, match="--device-map"):
        parse_device_map(text)


def test_limits_are_read() -> None:
    assert parse_max_memory("0=20GiB, 1=500MB,cpu=1000") == {0: "20GiB", 1: "500MB", "cpu": 1000}
    for text in ("", "20GiB", "gpu=3", "0=lots", "0=1GiB;cpu=2"):
        with pytest.raises(SettingError, match=r"--max-memory is .*0=20GiB,cpu=60GiB"):
            parse_max_memory(text)
