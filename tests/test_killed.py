"""A run that is killed at any moment and started again ends as one that was never killed, and leaves nothing behind.

Two kills of a living process a kind of run; `CORSA_KILLS=50` makes it fifty, and adds the demo, which takes longer.
The moments are the same each time; `CORSA_KILLS_SEED=1` draws others.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.manifest import MANIFEST, check_folder
from tests.conftest import DOCUMENTS
from tests.support import killed
from tests.support.edited import changed

KILLS = int(os.environ.get("CORSA_KILLS", "2"))
KINDS = ["merge", "statistics", "edit", "rsft", "sequential", "protocol", "sweep", "export", "evaluation", "training"]
if KILLS > 3:
    KINDS.append("demo")
NEEDS = {"merge": ("mergekit",), "training": ("trl", "peft", "datasets"), "export": ("peft",)}
REQUESTS = [
    EditRequest(prompt=f"The capital of {land} is", subject=land, target_new=new, target_old=old, case_id=land)
    for land, new, old in (("France", "Rome", "Paris"), ("Italy", "Oslo", "Rome"), ("Spain", "Paris", "Madrid"))
]


@pytest.fixture
def inputs(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    for name, model in (("model", taught_llama), ("other", changed(taught_llama, 1))):
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    recipe = {
        "merge_method": "scaled_pruned_delta", "base_model": str(folder / "model"),
        "models": [{"model": str(folder / "other")}],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "text.txt").write_text("".join(f"{text.strip()}\n".replace("\n", " ") + "\n" for text in DOCUMENTS * 6))
    write_requests(folder / "requests.jsonl", REQUESTS)
    return folder


ENDS = ("records.jsonl", "untouched.jsonl", "sweep.jsonl")  # what depends on no clock


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)} {name}": value for file in files for name, value in load_file(file).items()}


def texts(folder: Path) -> dict[str, bytes]:
    files = [file for name in ENDS for file in folder.rglob(name)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def said_to_be_whole(folder: Path) -> list[Path]:
    """What has a manifest, but for what a hidden name or the lack of the last file of statistics says to be in work."""
    found = [manifest.parent for manifest in folder.rglob(MANIFEST) if ".part" not in str(manifest)]
    return [one for one in found if one.name != "stats" or (one / "statistics.json").exists()]


def check_same(folder: Path, unbroken: Path) -> None:
    assert tensors(unbroken) or texts(unbroken)
    torch.testing.assert_close(tensors(folder), tensors(unbroken), rtol=0, atol=0)
    assert texts(folder) == texts(unbroken)
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {
        path.relative_to(unbroken) for path in unbroken.rglob("*")
    }


@pytest.fixture(params=KINDS)
def kind(
    request: pytest.FixtureRequest,
    inputs: Path,
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> str:
    """A kind of run, of which the inputs hold what it needs."""
    kind: str = request.param
    for needed in NEEDS.get(kind, ()):
        pytest.importorskip(needed)
    if kind in ("edit", "sequential", "export"):
        settings = {"n_tokens": 2000, "out": inputs / "stats"}
        collect_statistics(taught_llama, tiny_tokenizer, str(inputs / "text.txt"), (0, 1), **settings)
    if kind == "export":
        killed.run(killed.edit, inputs, inputs)
    return kind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files as POSIX systems do")
def test_a_full_disk_is_named_and_the_same_call_goes_on_when_there_is_room(
    kind: str, inputs: Path, tmp_path: Path
) -> None:
    killed.run(getattr(killed, kind), inputs, tmp_path / "unbroken")
    largest = max(file.stat().st_size for file in (tmp_path / "unbroken").rglob("*") if file.is_file())
    full = tmp_path / "full" / "out"
    full.parent.mkdir()
    killed.run(partial(killed.full, kind, largest * 3 // 4), inputs, full)
    told = (tmp_path / "full" / "error.txt").read_text()
    assert str(full) in told
    assert not [path for path in full.rglob("*") if path.suffix in (".part", ".new", ".old")]
    for folder in said_to_be_whole(full):
        check_folder(folder)
    killed.run(getattr(killed, kind), inputs, full)
    check_same(full, tmp_path / "unbroken")


@pytest.mark.timeout(max(600, 100 * KILLS))
def test_a_run_that_is_killed_ends_as_one_that_is_not(kind: str, inputs: Path, tmp_path: Path) -> None:
    work, unbroken = getattr(killed, kind), tmp_path / "unbroken"
    killed.run(work, inputs, tmp_path / "warm")  # the server of processes has started
    seconds = killed.run(work, inputs, unbroken).seconds
    hits = tries = 0
    moments = killed.moments(seconds, kind + os.environ.get("CORSA_KILLS_SEED", ""))
    while hits < KILLS:
        tries += 1
        broken = tmp_path / f"broken-{tries - hits}"  # another after each that came to its end before it was killed
        run = killed.run(work, inputs, broken, next(moments))
        assert tries < 10 * KILLS, "hardly a kill hits"
        for folder in said_to_be_whole(broken):
            check_folder(folder)
        hits += run.killed
        if not run.killed:
            check_same(broken, unbroken)
    killed.run(work, inputs, broken)
    check_same(broken, unbroken)
