"""A GGUF file as the model of every step of an edit: it is edited unpacked, and the edits are an adapter of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit import KeyStatistics
from corsa_plugins.data.reading import write_requests
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.tokenization import encode_prompt
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import REQUESTS, SETTINGS
from tests.support.command import Command
from tests.support.gguf import write_gguf

pytest.importorskip("accelerate")

REACHING = replace(
    SETTINGS, layers=(0,), ridge=0.01, values=replace(SETTINGS.values, steps=40, clamp=8.0, lr=0.1), n_contexts=0
)
"""AlphaEdit+ with all of its parts, and values that a tiny model's answers follow."""


def test_statistics_an_edit_and_the_adapter_that_is_to_be_converted(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, corsa: Command
) -> None:
    peft = pytest.importorskip("peft")
    file = tmp_path / "tiny.gguf"
    write_gguf(file, taught_llama, tiny_tokenizer)
    content = file.read_bytes()
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(REACHING.as_dict()))
    write_requests(tmp_path / "facts.jsonl", REQUESTS)
    model = ("--model", file, "--device", "cpu", "--quiet")
    facts = ("--requests", tmp_path / "facts.jsonl")
    stats = ("--statistics", tmp_path / "stats")

    def run(command: str, *arguments: object) -> str:
        done = corsa(command, *arguments)
        assert done.exit_code == 0, done.stderr
        return done.output

    run("stats", *model, "--text", tmp_path / "texts.txt", "--layers", "0-1", "--output", tmp_path / "stats")
    edit = ("--settings", tmp_path / "settings.yaml", "--output", tmp_path / "edited")
    run("edit", *model, *facts, *stats, *edit)
    adapter = tmp_path / "adapter"
    run("export", tmp_path / "edited", "--adapter", adapter)
    run("evaluate", *model, *facts, "--edited", tmp_path / "edited", "--output", tmp_path / "results")

    base, tokenizer = load_model(file, device="cpu")
    KeyStatistics.load(tmp_path / "stats").check(base)
    edited, _ = load_model(tmp_path / "edited" / "model", device="cpu")  # unpacked, and an ordinary model
    prompts = [torch.tensor([encode_prompt(tokenizer, request.prompt)]) for request in REQUESTS]
    with torch.no_grad():
        before = [base(ids).logits for ids in prompts]
        after = [edited(ids).logits for ids in prompts]
        served = peft.PeftModel.from_pretrained(base, adapter)
        given = [served(ids).logits for ids in prompts]
    for old, new, mine in zip(before, after, given, strict=True):
        assert not torch.allclose(old, new, atol=1e-2)
        torch.testing.assert_close(mine, new, rtol=0, atol=1e-4)
    told = json.loads((adapter / "corsa.json").read_text())["fingerprint"]
    assert Fingerprint.from_dict(told).matches(Fingerprint.of(load_model(file, device="cpu")[0]))
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())["metrics"]["efficacy"]["mean"]
    was = json.loads((tmp_path / "results" / "baseline" / "summary.json").read_text())["metrics"]["efficacy"]["mean"]
    assert summary > was

    back = ("--state", tmp_path / "edited", "--revert", "all", "--output", tmp_path / "back")
    run("edit", "--model", tmp_path / "edited" / "model", *back, "--quiet")
    reverted, _ = load_model(tmp_path / "back" / "model", device="cpu")
    held = load_model(file, device="cpu")[0].state_dict()
    assert all(torch.equal(value, held[name]) for name, value in reverted.state_dict().items())
    assert file.read_bytes() == content
