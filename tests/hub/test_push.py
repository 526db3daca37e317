"""What is written goes to the Hub with its card, whole or not at all, and nothing is lost where it does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.adapters import read_adapter
from corsa_plugins.bench.evaluation import evaluate, save_evaluation
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.hub import HubError, Kind, Made, card_text, contents_of, fingerprint_of, open_repository, write_card
from corsa_plugins.hub.contents import ContentsError
from corsa_plugins.manifest import DamagedError
from corsa_plugins.methods.registry import method_specs
from corsa_plugins.model.loading import load_model
from corsa_plugins.testbed import load_testbed
from tests.fixtures.adapters import Edited
from tests.fixtures.alphaedit import REQUESTS, TestbedBench
from tests.support.hub import Hub


def corsa(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def state(edited: Edited, tmp_path: Path) -> Path:
    edited.state.save(tmp_path / "state")
    return tmp_path / "state"


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_an_adapter_is_exported_and_pushed_and_comes_back_as_it_was(
    hub: Hub, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    assert corsa("export", state, "--adapter", adapter, "--push-to-hub", "me/capitals", "--private") == 0
    assert f"uploaded to {hub.address}/me/capitals" in capsys.readouterr().out
    files = hub.repositories["models/me/capitals"]
    assert hub.private["models/me/capitals"]
    here = {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert files == here
    back = tmp_path / "back"
    back.mkdir()
    for name, content in files.items():
        (back / name).write_bytes(content)
    (back / "README.md").write_text("another card, by a person")  # no damage
    assert read_adapter(back).updates.keys() == read_adapter(adapter).updates.keys()
    card = files["README.md"].decode()
    assert front(card)["library_name"] == "peft"
    about = json.loads(files["corsa.json"])
    assert about["fingerprint"]["digest"] in card
    assert all(f"{batch['name']} ({batch['requests']} facts)" in card for batch in about["batches"])


QUICK = {
    "rsft": {"layer": 0, "epochs": 1, "steps": 1},
    "rsft-merged": {"layer": 0, "epochs": 1, "steps": 1, "weight": 0.5},
    "locft-bf": {"layer": 0, "epochs": 1, "append_eos": False},
    "lora-sft": {"max_steps": 1, "use_cpu": True, "bf16": False, "gradient_checkpointing": False},
    "corsa": {"max_steps": 1, "use_cpu": True, "bf16": False, "gradient_checkpointing": False},
    "f-learning": {"max_steps": 1, "use_cpu": True, "bf16": False, "gradient_checkpointing": False},
    "in-context": {},
    "rsft-mergekit": {"layer": 0, "epochs": 1, "steps": 1},
}
"""Of every method that leaves no edit state."""


@pytest.mark.parametrize("method", QUICK)
def test_an_edit_without_a_state_is_pushed_with_what_was_edited_of_which_model(
    hub: Hub, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, method: str
) -> None:
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    facts = [request.model_copy(update={"target_old": "Oslo"}) for request in REQUESTS]
    write_requests(tmp_path / "facts.jsonl", facts)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(QUICK[method]))
    edited = tmp_path / "edited"
    code = corsa(
        "edit", "--model", tmp_path / "model", "--requests", tmp_path / "facts.jsonl", "--method", method, "--output",
        edited, "--settings", tmp_path / "settings.yaml", "--push-to-hub", "me/edited", "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert code == 0
    files = hub.repositories["models/me/edited"]
    card = files["README.md"].decode()
    assert (edited / "README.md").read_text() == card
    assert "state.json" not in files
    told(card, tmp_path, method, facts)
    write_card(edited, Made(figures={"efficacy": "100"}))  # what it said is left where nothing else is told
    later = (edited / "README.md").read_text()
    told(later, tmp_path, method, facts)
    assert "| efficacy | 100 |" in later
    write_card(edited, Made("another/base"))
    another = (edited / "README.md").read_text()
    assert fingerprint_of(taught_llama) not in another


def told(card: str, home: Path, method: str, facts: list[EditRequest]) -> None:
    base, _ = load_model(home / "model", device="cpu")
    assert front(card)["tags"] == ["knowledge-editing", "corsa-plugins", method]
    assert f"| method | {method} |" in card
    assert f"| its fingerprint | {fingerprint_of(base)} |" in card
    assert str(home) not in card
    for fact in facts:
        assert card.count(f"| {fact.prompt} | {fact.target_new} | {fact.target_old} |") == 1
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) or method == "in-context"


def test_every_method_that_leaves_no_state_is_pushed_here() -> None:
    assert set(QUICK) == {spec.name for spec in method_specs() if not spec.reversible}


def test_an_edit_with_a_state_is_pushed_with_its_facts(hub: Hub, testbed_bench: TestbedBench, tmp_path: Path) -> None:
    """What is at the root is the model, the state beside it."""
    testbed_bench.statistics.save(tmp_path / "stats")
    write_requests(tmp_path / "first.jsonl", testbed_bench.requests[:3])
    code = corsa(
        "edit", "--model", load_testbed().path, "--requests", tmp_path / "first.jsonl", "--statistics",
        tmp_path / "stats", "--settings", "testbed", "--output", tmp_path / "one", "--push-to-hub", "me/one",
        "--private", "--quiet",
    )  # fmt: skip
    assert code == 0
    assert hub.private["models/me/one"]
    files = hub.repositories["models/me/one"]
    assert {"config.json", "model.safetensors", "state/state.json", "report.json"} <= files.keys()
    card = files["README.md"].decode()
    state = json.loads(files["state/state.json"])
    assert f"| its fingerprint | {state['fingerprint']['digest']} |" in card
    for fact in testbed_bench.requests[:3]:
        assert f"| {fact.prompt} | {fact.target_new} |" in card


def test_a_state_says_its_facts_and_settings(hub: Hub, state: Path, edited: Edited) -> None:
    repository = open_repository("me/state", Kind.STATE)
    repository.upload(state)
    card = hub.repositories["models/me/state"]["README.md"].decode()
    for batch in edited.state.batches:
        assert all(f"| {r.prompt} | {r.target_new} |" in card for r in batch.requests)
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["layers"] == list(edited.state.modules)
    assert {"state.json", "state.safetensors", "manifest.json", "README.md"} == set(
        hub.repositories["models/me/state"]
    )  # fmt: skip


def test_an_edited_model_is_at_the_root_and_later_figures_leave_the_rest_of_the_card(
    hub: Hub, edited: Edited, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "edited"
    edited.base.model.save_pretrained(folder / "model")
    state.rename(folder / "state")
    (folder / "weights.safetensors").write_bytes(b"a method's own")
    (folder / "report.json").write_text(json.dumps({"effect": {"text": "3 of 3 requests said"}, "requests": []}))
    write_card(folder, Made("org/base", "rsft", {"epochs": 5}, facts=REQUESTS))
    results = evaluate(edited.base.model, edited.base.tokenizer, REQUESTS[:1], progress=False)
    save_evaluation(results, tmp_path / "results")
    before = digests(folder)
    assert corsa("push", folder, "me/edited", "--results", tmp_path / "results") == 0
    assert digests(folder) == before
    files = hub.repositories["models/me/edited"]
    assert {"config.json", "model.safetensors", "state/state.json", "report.json", "README.md"} <= files.keys()
    assert "weights.safetensors" not in files
    card = files["README.md"].decode()
    assert front(card)["base_model"] == "org/base"
    assert "| method | rsft |" in card
    assert "epochs: 5" in card
    assert "3 of 3 requests said" in card
    assert "| Efficacy, % |" in card


def test_requests_are_a_data_set(hub: Hub, tmp_path: Path) -> None:
    write_requests(tmp_path / "facts.jsonl", REQUESTS)
    assert corsa("push", tmp_path / "facts.jsonl", "me/facts") == 0
    files = hub.repositories["datasets/me/facts"]
    (tmp_path / "back.jsonl").write_bytes(files["requests.jsonl"])
    assert read_requests(tmp_path / "back.jsonl") == list(REQUESTS)
    assert front(files["README.md"].decode())["configs"][0]["data_files"] == "requests.jsonl"


def test_what_cannot_be_uploaded_is_whole_and_the_message_says_how_to_go_on(
    hub: Hub, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails.add("commit")
    adapter = tmp_path / "adapter"
    assert corsa("export", state, "--adapter", adapter, "--push-to-hub", "me/capitals") == 2
    error = capsys.readouterr().err
    assert f"corsa push {adapter} me/capitals" in error
    read_adapter(adapter)
    assert not hub.repositories["models/me/capitals"]
    hub.fails.clear()
    assert corsa("push", adapter, "me/capitals") == 0
    assert "adapter_model.safetensors" in hub.repositories["models/me/capitals"]


@pytest.mark.parametrize(
    ("token", "fails", "message"),
    [("", "", "no token of the Hub"), ("hf_other", "", "nothing can be pushed"), (None, "create", "out of order")],
)
def test_it_is_known_before_any_work_that_nothing_can_be_pushed(
    hub: Hub,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    fails: str,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.fails.add(fails)
    assert corsa("export", state, "--adapter", tmp_path / "adapter", "--push-to-hub", "me/x") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub) -> None:
    open_repository("me/x")
    with pytest.raises(HubError, match="me/x is there and public"):
        open_repository("me/x", private=True)


def test_offline_it_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with pytest.raises(HubError, match="offline mode"):
        open_repository("me/x")


def test_what_is_nothing_for_the_hub(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContentsError, match="holds no model"):
        contents_of(tmp_path / "empty")
    with pytest.raises(ContentsError, match="no such folder"):
        contents_of(tmp_path / "nowhere")
    (state / "state.json").write_text("{}")
    with pytest.raises(DamagedError):
        contents_of(state)
    assert corsa("export", state, "--adapter", tmp_path / "a", "--private") == 2
    assert "--push-to-hub" in capsys.readouterr().err


def test_a_card_names_no_folder_of_this_disk(state: Path, tmp_path: Path) -> None:
    text = card_text(contents_of(state), Made(base=str(tmp_path / "secret" / "model")))
    assert str(tmp_path) not in text
    assert "edit state of model" in text.lower()
