"""A run that is killed at any moment and started again ends as one that was never killed, and leaves nothing behind.

Three kills a kind of run; `CORSA_KILLS=50` makes it fifty.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.manifest import check_folder
from tests.conftest import DOCUMENTS
from tests.support import killed
from tests.support.edited import changed

KILLS = int(os.environ.get("CORSA_KILLS", "3"))
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


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", ["merge", "statistics", "edit", "evaluation"])
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    kind: str,
    inputs: Path,
    tmp_path: Path,
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    if kind == "merge":
        pytest.importorskip("mergekit")
    if kind == "edit":
        settings = {"n_tokens": 2000, "out": inputs / "stats"}
        collect_statistics(taught_llama, tiny_tokenizer, str(inputs / "text.txt"), (0, 1), **settings)
    work = getattr(killed, kind)
    killed.run(work, inputs, tmp_path / "warm")  # the server of processes has started
    seconds = killed.run(work, inputs, tmp_path / "unbroken")
    for moment in killed.moments(seconds, KILLS, kind):
        killed.run(work, inputs, tmp_path / "broken", moment)
        for folder in ("merged", "stats", "edited"):  # what is there is whole
            if (tmp_path / "broken" / folder).exists():
                check_folder(tmp_path / "broken" / folder)
    killed.run(work, inputs, tmp_path / "broken")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    if kind == "evaluation":
        for file in ("records.jsonl", "untouched.jsonl"):
            assert (broken / "results" / file).read_bytes() == (unbroken / "results" / file).read_bytes()
    else:
        torch.testing.assert_close(tensors(broken), tensors(unbroken), rtol=0, atol=0)
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (unbroken, broken)]
    assert names[0] == names[1]
