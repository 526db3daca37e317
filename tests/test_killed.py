"""A command that is killed at any moment and given again ends as one that was never killed, and leaves nothing behind.

Two kills of a living process a kind of run; `make kills` makes it fifty (`CORSA_KILLS=50`), adds the demo and three
rounds of CoRSA in a protocol, edits 500 facts one after the other in the place of three, and has the last call made by
a Python that begins with nothing. The moments are the same each time; `CORSA_KILLS_SEED=1` draws others.
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.manifest import MANIFEST, check_folder
from tests.conftest import DOCUMENTS
from tests.support import killed
from tests.support.disk import mounts_of_its_own
from tests.support.edited import changed

KILLS = int(os.environ.get("CORSA_KILLS", "2"))
SLOW = KILLS > 3
KINDS = ["statistics", *(kind for kind in killed.COMMANDS if SLOW or kind not in ("rounds", "demo"))]
DISKS = mounts_of_its_own()
FULL = [kind for kind in ("edit", "training", "merge", "protocol", "demo") if kind in KINDS]
LIMITED = [kind for kind in KINDS if not (DISKS and kind in FULL)]
FRAMEWORKS = ("trl", "peft", "datasets")
NEEDS = {"merge": ("mergekit",), "training": FRAMEWORKS, "rounds": FRAMEWORKS, "export": ("peft",)}
REQUESTS = [
    EditRequest(prompt=f"The capital of {land} is", subject=land, target_new=new, target_old=old, case_id=land)
    for land, new, old in (("France", "Rome", "Paris"), ("Italy", "Oslo", "Rome"), ("Spain", "Paris", "Madrid"))
]
SYLLABLES = ("An", "Ber", "Cor", "Dun", "El", "Far", "Gar", "Hol"), ("a", "o", "u", "ia"), ("nia", "via", "ra", "mark")
LANDS = ["".join(parts) for parts in product(SYLLABLES[0], SYLLABLES[1], SYLLABLES[0], SYLLABLES[2])]
RSFT = {"layer": 1, "epochs": 2, "steps": 2, "learning_rate": 3e-3}
QUICK = {
    "layers": [0, 1], "null_space": {"by": "share", "value": 0.6}, "ridge": 0.1, "ridge_unit": "relative",
    "values": {"steps": 3, "lr": 0.5, "lr_unit": "relative"}, "n_contexts": 0,
}  # fmt: skip
CORSA = {
    "max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
    "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "lora": {"r": 2, "target_modules": "all-linear"},
}  # fmt: skip


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
    settings = {"recipe": recipe, "rsft": RSFT, "quick": QUICK, "corsa": CORSA, "alphaedit": {"layers": [0, 1]}}
    for name, content in settings.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "text.txt").write_text("".join(f"{text.strip()}\n".replace("\n", " ") + "\n" for text in DOCUMENTS * 6))
    write_requests(folder / "requests.jsonl", REQUESTS)
    write_requests(folder / "sequential.jsonl", many_requests(500) if SLOW else REQUESTS)
    for number, request in enumerate(REQUESTS, 1):
        write_requests(folder / f"round-{number}.jsonl", [request])
    write_probes(folder / "untouched.jsonl", [Probe(prompt="The capital of Italy is", answer="Rome")])
    return folder


def many_requests(count: int) -> list[EditRequest]:
    """As many facts, of lands that there are not."""
    capitals = cycle(("Rome", "Oslo", "Paris", "Madrid", "Buenos Aires"))
    facts = zip(islice(LANDS, count), capitals, strict=False)
    return [EditRequest(prompt=f"The capital of {land} is", subject=land, target_new=to) for land, to in facts]


# What depends on no clock.
ENDS = ("records.jsonl", "untouched.jsonl", "requests.jsonl", "sweep.jsonl", "best.yaml")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)} {name}": value for file in files for name, value in load_file(file).items()}


def texts(folder: Path) -> dict[str, bytes]:
    files = [file for name in ENDS for file in folder.rglob(name)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def said_to_be_whole(folder: Path) -> list[Path]:
    """What has a manifest, but for what a hidden name, a word in it or the lack of the last file of statistics says to
    be in work."""
    found = [manifest.parent for manifest in folder.rglob(MANIFEST) if ".part" not in str(manifest)]
    found = [one for one in found if "unfinished" not in json.loads((one / MANIFEST).read_text())]
    return [one for one in found if one.name != "stats" or (one / "statistics.json").exists()]


def check_same(folder: Path, unbroken: Path) -> None:
    assert tensors(unbroken) or texts(unbroken)
    torch.testing.assert_close(tensors(folder), tensors(unbroken), rtol=0, atol=0)
    assert texts(folder) == texts(unbroken)
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {
        path.relative_to(unbroken) for path in unbroken.rglob("*")
    }


def work_of(kind: str) -> killed.Work:
    return killed.statistics if kind == "statistics" else partial(killed.command, kind)


def check_done(kind: str, run: killed.Run, *, again: bool) -> None:
    """It came to its end; ``again``: or found that it was there already, and said so."""
    if again and run.code and kind in killed.WHOLE:
        assert run.code in (1, 2)  # as a call of Python has it, and as a command
        assert killed.WHOLE[kind] in run.said
    else:
        assert run.code == 0, run.said


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
        check_done("edit", killed.run(work_of("edit"), inputs, inputs), again=False)
    return kind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files as POSIX systems do")
@pytest.mark.parametrize("kind", LIMITED, indirect=True)
@pytest.mark.timeout(3600 if SLOW else 600)
def test_a_full_disk_is_named_and_the_same_call_goes_on_when_there_is_room(
    kind: str, inputs: Path, tmp_path: Path
) -> None:
    work, unbroken, full = work_of(kind), tmp_path / "unbroken", tmp_path / "full" / "out"
    check_done(kind, killed.run(work, inputs, unbroken), again=False)
    largest = max(file.stat().st_size for file in unbroken.rglob("*") if file.is_file())
    full.parent.mkdir()
    run = killed.run(partial(killed.without_room, work, largest * 3 // 4), inputs, full)
    assert run.code
    check_full(run.said, full)
    check_done(kind, killed.run(work, inputs, full), again=False)
    check_same(full, unbroken)


def check_full(said: str, full: Path) -> None:
    assert "Traceback" not in said
    assert str(full) in said
    for folder in said_to_be_whole(full):
        check_folder(folder)


@pytest.mark.skipif(not DISKS, reason="a disk of its own needs the right to mount one: user namespaces")
@pytest.mark.parametrize("kind", FULL, indirect=True)
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_so_does_one_on_a_disk_that_holds_a_part_of_it(kind: str, share: float, inputs: Path, tmp_path: Path) -> None:
    """The system itself says so, at whatever file it comes; torch.save has words of its own, and a merge asks first."""
    work, unbroken, disk, kept = work_of(kind), tmp_path / "unbroken", tmp_path / "disk", tmp_path / "kept"
    check_done(kind, killed.run(work, inputs, unbroken), again=False)
    pages = sum(-(-path.stat().st_size // 4096) for path in unbroken.rglob("*") if path.is_file())
    disk.mkdir()
    kept.mkdir()
    run = killed.run(partial(killed.on_a_small_disk, work, int(share * pages) * 4096, kept), inputs, disk / "out")
    assert run.code == 0, run.said
    first, second = (json.loads((kept / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["code"] == 2, first["said"]
    assert re.search("No space left on device|inline_container|needs .* has .* left", first["said"])
    check_full(first["said"], disk / "out")
    assert not first["left"]
    assert second["code"] == 0, second["said"]
    check_same(kept / "out", unbroken)


@pytest.mark.timeout(max(600, 400 * KILLS))
def test_a_run_that_is_killed_ends_as_one_that_is_not(kind: str, inputs: Path, tmp_path: Path) -> None:
    work, unbroken = work_of(kind), tmp_path / "unbroken"
    check_done(kind, killed.run(work, inputs, tmp_path / "warm"), again=False)  # the server of processes has started
    first = killed.run(work, inputs, unbroken)
    check_done(kind, first, again=False)
    hits = tries = 0
    moments = killed.moments(first.seconds, kind + os.environ.get("CORSA_KILLS_SEED", ""))
    while hits < KILLS:
        tries += 1
        broken = tmp_path / f"broken-{tries - hits}"  # another after each that came to its end before it was killed
        run = killed.run(work, inputs, broken, next(moments))
        assert tries < 10 * KILLS, "hardly a kill hits"
        for folder in said_to_be_whole(broken):
            check_folder(folder)
        hits += run.killed
        if SLOW:
            print(f"{kind}: {hits} kills in {tries} tries", file=sys.__stderr__, flush=True)
        if not run.killed:
            check_done(kind, run, again=True)
            check_same(broken, unbroken)
    script = SLOW and kind in killed.COMMANDS
    check_done(kind, killed.script(kind, inputs, broken) if script else killed.run(work, inputs, broken), again=True)
    check_same(broken, unbroken)


@pytest.mark.parametrize("kind", [kind for kind in killed.WHOLE if kind in killed.COMMANDS], indirect=True)
def test_a_command_whose_output_is_whole_says_so_and_leaves_it(kind: str, inputs: Path, tmp_path: Path) -> None:
    work, out = work_of(kind), tmp_path / "out"
    check_done(kind, killed.run(work, inputs, out), again=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run = killed.run(work, inputs, out)
    assert run.code == 2
    assert killed.WHOLE[kind] in run.said
    assert str(out) in run.said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
