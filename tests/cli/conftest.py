"""The script as a user calls it, and what its commands are called on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from tests.fixtures.alphaedit import TestbedBench
from tests.support.adapters import PARTS
from tests.support.command import Command, Result


@pytest.fixture
def corsa(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `corsa` with the given arguments."""

    def run(*arguments: Any) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def world(tmp_path: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a model, two requests, of which it says the one, and a fact that it knows."""
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    requests = [
        EditRequest(prompt="The capital of France is", target_new="Paris", target_old="Rome", case_id=1),
        EditRequest(prompt="The capital of Italy is", target_new="Oslo", target_old="Rome", case_id=2),
    ]
    write_requests(tmp_path / "requests.jsonl", requests)
    write_probes(tmp_path / "untouched.jsonl", [Probe(prompt="The capital of Spain is", answer="Madrid")])
    return tmp_path


@pytest.fixture
def adapters_folder(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model, an adapter that changes nothing and one that spoils everything; each with its requests."""
    peft = pytest.importorskip("peft")
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    for name, requests in PARTS.items():
        config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=name == "capitals")
        model = peft.get_peft_model(taught_llama, config)
        if name == "people":
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.normal_(std=0.5)
        model.save_pretrained(tmp_path / name)
        write_requests(tmp_path / name / "requests.jsonl", requests)
        model.unload()
    return tmp_path


@pytest.fixture
def corsa_with_adapters(adapters_folder: Path, corsa: Command) -> Command:
    """Runs `corsa COMMAND` with the model and the adapters of ``adapters_folder``; DIR stands for that folder."""

    def run(command: str, *arguments: str) -> Result:
        adapters = [part for name in PARTS for part in ("-a", adapters_folder / name)]
        given = [command, "-m", adapters_folder / "model", *adapters, "--device", "cpu", "-q", "--max-new-tokens", "5"]
        return corsa(*given, *(argument.replace("DIR", str(adapters_folder)) for argument in arguments))

    return run


@pytest.fixture
def edits(testbed_bench: TestbedBench, tmp_path: Path) -> Path:
    """Statistics of the testbed, and two files of edits."""
    testbed_bench.statistics.save(tmp_path / "stats")
    write_requests(tmp_path / "first.jsonl", testbed_bench.requests[:3])
    write_requests(tmp_path / "second.jsonl", testbed_bench.requests[3:5])
    return tmp_path
