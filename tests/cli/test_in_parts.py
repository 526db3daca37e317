"""Every command that takes ``--device-map`` on a model of which most is on disk: what it writes is what it writes of
the model in one place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.data.requests import Probe
from corsa_plugins.model.stored import save_model
from tests.cli.test_options import options_by_flag
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS
from tests.support.adapters import PARTS
from tests.support.command import Command
from tests.support.placed import device_map

pytest.importorskip("accelerate")

SETTINGS = replace(QUICK, layers=(0,), n_contexts=0)
LOCFT = {"layer": 1, "epochs": 1, "append_eos": False}
RSFT = {"layer": 1, "epochs": 1, "steps": 2}
EDIT = ("edit", "--model", "MODEL", "--requests", "HOME/facts.jsonl", "--output", "OUT")
CLOSED = ("--statistics", "HOME/stats", "--settings", "HOME/settings.yaml")
ADAPTERS = ("--model", "MODEL", "-a", "HOME/capitals", "-a", "HOME/people", "--max-new-tokens", "4")
ASKED = ("--requests", "HOME/facts.jsonl", "--max-new-tokens", "4")

COMMANDS: dict[str, tuple[str, ...]] = {
    "stats": ("stats", "--model", "MODEL", "--text", "HOME/texts.txt", "--layers", "0-1", "--output", "OUT"),
    "edit, alphaedit+": (*EDIT, *CLOSED),
    "edit, memit": (*EDIT, *CLOSED, "--method", "memit"),
    "edit, locft-bf": (*EDIT, "--method", "locft-bf", "--settings", "HOME/locft.yaml"),
    "edit, rsft": (*EDIT, "--method", "rsft", "--settings", "HOME/rsft.yaml"),
    "edit, rsft-merged": (*EDIT, "--method", "rsft-merged", "--settings", "HOME/rsft.yaml"),
    "edit, in-context": (*EDIT, "--method", "in-context"),
    "edit, going on": ("edit", "--model", "MODEL", "--state", "HOME/edited", "--requests", "HOME/later.jsonl",
                       "--statistics", "HOME/stats", "--output", "OUT"),
    "edit, reverting": ("edit", "--model", "MODEL", "--state", "HOME/edited", "--revert", "1", "--output", "OUT"),
    "import": ("import", "HOME/capitals", "--model", "MODEL", "--any-base", "--output", "OUT"),
    "export of a state": ("export", "HOME/edited", "--model", "MODEL", "--rank", "2", "--statistics", "HOME/stats",
                          "--adapter", "OUT"),
    "export of a difference": ("export", "HOME/edited/model", "--model", "MODEL", "--rank", "2", "--requests",
                               "HOME/facts.jsonl", "--adapter", "OUT"),
    "diagnose": ("diagnose", "--model", "MODEL", "--requests", "HOME/facts.jsonl", *CLOSED, "--values", "--output",
                 "OUT"),
    "conflict-set": ("conflict-set", "prior", "--model", "MODEL", "--state", "HOME/edited", "--requests",
                     "HOME/later.jsonl", "--size", "2", *CLOSED, "--output", "OUT/set.jsonl"),
    "evaluate": ("evaluate", "--model", "MODEL", "--edited", "HOME/edited", *ASKED, "--untouched", "HOME/kept.jsonl",
                 "--output", "OUT"),
    "evaluate, an adapter": ("evaluate", "--model", "MODEL", "--adapter", "HOME/people", *ASKED, "--output", "OUT"),
    "protocol": ("protocol", "stream", "--model", "MODEL", *ASKED, "--requests", "HOME/later.jsonl", "--method",
                 "alphaedit+", "--method", "rsft", "--method", "in-context", "--statistics", "HOME/stats", "--settings",
                 "alphaedit+=HOME/settings.yaml", "--settings", "rsft=HOME/rsft.yaml", "--output", "OUT"),
    "merge-sweep": ("merge-sweep", "--base", "MODEL", "--edited", "HOME/edited/model", *ASKED, "--untouched",
                    "HOME/kept.jsonl", "--weights", "0.5", "--densities", "0.2", "--no-plot", "--output", "OUT"),
    "evaluate-adapters": ("evaluate-adapters", *ADAPTERS, "--router", "nearest", "--output", "OUT"),
    "route": ("route", *ADAPTERS, "--router", "nearest", "The capital of France is", "Anna Berg was born in"),
    "merge-adapters": ("merge-adapters", "HOME/capitals", "HOME/people", "--weights", "0.5", "0.5", "--model", "MODEL",
                       "-r", "HOME/capitals/requests.jsonl", "-r", "HOME/people/requests.jsonl", "--output", "OUT"),
}  # fmt: skip
MADE = ("stats", "edit, memit", "evaluate")
ELSEWHERE = {
    "evaluate-code": "runs what a model writes as evaluate does, in a sandbox that not every machine has",
    "atlas": "asks a pretrained model for facts of packages, as evaluate asks",
}
"""Commands that load a model as those above do, and are not run here."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands are given: a model and its map, facts, statistics, an edit and two adapters."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def filled(home: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, corsa: Command) -> Path:
    if (home / "edited").exists():
        return home
    peft = pytest.importorskip("peft")
    save_model(taught_llama, tiny_tokenizer, home / "model")
    (home / "map.json").write_text(json.dumps(device_map(taught_llama)))
    (home / "texts.txt").write_text("\n\n".join(TEXTS))
    for name, settings in {"settings": SETTINGS.as_dict(), "locft": LOCFT, "rsft": RSFT}.items():
        (home / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    facts = [request.model_copy(update={"target_old": "Oslo"}) for request in REQUESTS]
    write_requests(home / "facts.jsonl", facts)
    write_requests(home / "later.jsonl", LATER)
    write_probes(home / "kept.jsonl", [Probe(prompt="The capital of Italy is", answer="Rome")])
    torch.manual_seed(0)
    for name, requests in PARTS.items():
        model = peft.get_peft_model(taught_llama, peft.LoraConfig(r=2, target_modules=["down_proj", "q_proj"]))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1)
        model.save_pretrained(home / name)
        write_requests(home / name / "requests.jsonl", requests)
        model.unload()
    for name in ("stats", "edit, alphaedit+"):
        out = home / ("stats" if name == "stats" else "edited")
        run(corsa, home, COMMANDS[name], out, ("--device", "cpu"))
    return home


def run(corsa: Command, home: Path, command: tuple[str, ...], out: Path, placed: tuple[Any, ...]) -> str:
    words = {"MODEL": str(home / "model"), "OUT": str(out), "HOME": str(home)}
    given = [re.sub("MODEL|OUT|HOME", lambda found: words[found[0]], argument) for argument in command]
    out.parent.mkdir(exist_ok=True)
    done = corsa(*given, *placed, "--quiet")
    assert done.exit_code == 0, done.stderr
    return done.output.replace(str(out), "OUT")


@pytest.mark.parametrize(
    ("name", "how"),
    # a map that is made is a map: three commands show that the other option arrives
    [*((name, "--device-map") for name in COMMANDS), *((name, "--max-memory") for name in MADE)],
)
def test_what_it_writes_is_what_it_writes_of_the_model_in_one_place(
    filled: Path, name: str, how: str, tmp_path: Path, corsa: Command
) -> None:
    placed = {"--device-map": filled / "map.json", "--max-memory": "cpu=80KB"}[how]
    whole = run(corsa, filled, COMMANDS[name], tmp_path / "whole" / "out", ("--device", "cpu"))
    parts = run(corsa, filled, COMMANDS[name], tmp_path / "parts" / "out", (how, placed))
    assert without_times(parts) == without_times(whole)
    compared = dict(written(tmp_path / "whole"))
    assert compared or name == "route"
    found = dict(written(tmp_path / "parts"))
    assert found.keys() == compared.keys()
    for file, content in compared.items():
        assert same(found[file], content), file


def written(folder: Path) -> Iterator[tuple[str, Any]]:
    """What is in files, but for times, places and pictures."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    }
    for path in sorted(folder.rglob("*")):
        if path.suffix in readers and path.name not in ("manifest.json", "journal.jsonl"):
            yield path.relative_to(folder).as_posix(), readers[path.suffix](path)


def same(found: Any, content: Any) -> bool:
    """Alike but for what a run takes, and where it was run."""
    if isinstance(content, torch.Tensor):
        return torch.equal(found, content)
    if isinstance(content, dict):
        left = {key for key in content if not passing(key)}
        return left == {key for key in found if not passing(key)} and all(same(found[k], content[k]) for k in left)
    if isinstance(content, list):
        return len(found) == len(content) and all(map(same, found, content))
    if isinstance(content, float):
        return bool(found == pytest.approx(content, rel=1e-5, abs=1e-6, nan_ok=True))
    if isinstance(content, str):
        return found.replace("/parts", "/whole") == content
    return bool(found == content)


def passing(key: str) -> bool:
    return key in ("id", "checksum") or any(
        word in key for word in ("second", "time", "date", "device", "placement", "memory")
    )


def without_times(output: str) -> str:
    return re.sub(r"\d+(\.\d+)? ?(s|ms|min)\b", "TIME", output)


def test_every_command_that_takes_a_device_takes_a_model_in_parts() -> None:
    by_flag = options_by_flag()
    assert set(by_flag["--device"]) == set(by_flag["--device-map"]) == set(by_flag["--max-memory"])
    assert {command[0] for command in COMMANDS.values()} | set(ELSEWHERE) == set(by_flag["--device-map"])


def test_a_command_that_loads_a_model_and_takes_no_place_is_known() -> None:
    """The demo runs each method in processes of its own, on models that fit everywhere (docs/large-models.md)."""
    by_flag = options_by_flag()
    models = {"--model", "--base", "--atlas", "--judge-model"}
    loading = {command for flag in models & by_flag.keys() for command in by_flag[flag]}
    assert loading - set(by_flag["--device"]) == {"demo"}
