"""``corsa protocol``."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from corsa_plugins.alphaedit import EditState, NullSpaceRule, ValueSettings, collect_statistics
from corsa_plugins.cli.commands.protocol import protocol
from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.errors import CorsaError
from corsa_plugins.methods.registry import method_names, method_spec, method_specs
from tests.conftest import TEXTS
from tests.support.command import Command
from tests.support.small_plans import BORN, FRANCE, FRANCE_AGAIN, ITALY, UNTOUCHED

RSFT = "{layer: 1, epochs: 1, steps: 2, learning_rate: 3.0e-3}"
ALPHAEDIT = """
layers: [0]
null_space: {by: share, value: 0.6}
ridge: 0.1
ridge_unit: relative
values: {steps: 3, lr: 0.5, lr_unit: relative}
n_contexts: 0
"""


@pytest.fixture
def folder(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_requests(tmp_path / "a.jsonl", [FRANCE, BORN])
    write_requests(tmp_path / "b.jsonl", [ITALY])
    write_requests(tmp_path / "round_1.jsonl", [FRANCE, ITALY])
    write_requests(tmp_path / "round_2.jsonl", [FRANCE_AGAIN])
    write_probes(tmp_path / "untouched.jsonl", list(UNTOUCHED))
    (tmp_path / "rsft.yaml").write_text(RSFT)
    (tmp_path / "alphaedit.yaml").write_text(ALPHAEDIT)
    return tmp_path


def call(folder: Path, kind: str, *arguments: str, files: tuple[str, ...] = ("a",)) -> Any:
    app = typer.Typer()
    app.command()(protocol)
    given = [kind, "-m", str(folder / "model"), "-o", str(folder / "out"), "--device", "cpu", "-q"]
    for file in files:
        given += ["-r", str(folder / f"{file}.jsonl")]
    for argument in arguments:
        given.append(argument.replace("DIR", str(folder)))
    return CliRunner().invoke(app, [*given, "--max-new-tokens", "5"], catch_exceptions=True)


def test_two_methods_and_their_folders(
    folder: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    collect_statistics(taught_llama, tiny_tokenizer, TEXTS, (0,), n_tokens=10**6, out=folder / "stats")
    done = call(
        folder, "injection", "--method", "alphaedit+", "--settings", "alphaedit+=DIR/alphaedit.yaml",
        "--method", "rsft-merged", "--settings", "rsft-merged=DIR/rsft.yaml", "--statistics", "DIR/stats",
        "--untouched", "DIR/untouched.jsonl", files=("a", "b"),
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "R-SFT merged: cross-set injection" in done.output
    assert done.output.count("cross-set injection (percent") == 3  # each method, and both side by side
    page = (folder / "out" / "report.html").read_text()
    assert "Right after update 1" in page
    assert "R-SFT merged, at the end" in page
    for name in ("alphaedit-plus", "rsft-merged"):
        summary = json.loads((folder / "out" / name / "summary.json").read_text())
        assert [update["requests"] for update in summary["updates"]] == [2, 1]
        assert "untouched" in summary["updates"][1]["untouched"]


FAMILY = ("memit", "rect", "prune", "blue", "kde", "encore", "nas", "sphere", "emmet", "rome", "memit+", "blue+")


def test_methods_of_the_editor_side_by_side(
    folder: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    collect_statistics(taught_llama, tiny_tokenizer, TEXTS, (0,), n_tokens=10**6, out=folder / "stats")
    arguments = ["--statistics", "DIR/stats"]
    given = {}
    for name in FAMILY:
        kind: Any = method_spec(name).settings_class()
        own = kind(layers=(0,))
        given[name] = kind.of(replace(
            own, n_contexts=0, ridge=0.5 if own.ridge else 0, null_space=own.null_space and NullSpaceRule("share", 0.6),
            values=ValueSettings(steps=2, lr=0.5, lr_unit="relative", chat_template=False, **kind.VALUES),
        ))  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(given[name].as_dict()), encoding="utf-8")  # YAML reads it
        arguments += ["--method", name, "--settings", f"{name}=DIR/{name}.yaml"]
    done = call(folder, "single", *arguments)
    assert done.exit_code == 0, done.exception
    for name, settings in given.items():
        run = folder / "out" / name.replace("+", "-plus")
        told = json.loads((run / "run.json").read_text())["method"]
        assert told == {"method": "AlphaEdit+", "name": method_spec(name).title, "settings": settings.as_dict()}
        assert EditState.load(run / "updates" / "001-update" / "state").batches[0].settings == settings


def test_the_list_has_one_line_for_each_method_with_its_source(corsa: Command) -> None:
    done = corsa("protocol", "--list")
    assert done.exit_code == 0
    lines = [line.strip("│").split("│") for line in done.output.splitlines() if line.startswith("│")]
    rows = {cells[0].strip().removesuffix(" *"): cells for cells in lines}
    assert len(rows) == len(lines)
    assert sorted(rows) == method_names()
    for spec in method_specs():
        assert spec.source.strip(), spec.name
        assert [cell.strip() for cell in rows[spec.name][1:3]] == [f"{spec.title}: {spec.summary}", spec.source]


def test_rounds_come_from_a_file_each(folder: Path) -> None:
    arguments = ("--method", "rsft", "--settings", "rsft=DIR/rsft.yaml")
    done = call(folder, "stream", *arguments, files=("round_1", "round_2"))
    assert done.exit_code == 0, done.exception
    summary = json.loads((folder / "out" / "rsft" / "summary.json").read_text())
    assert [(update["requests"], update["standing"]) for update in summary["updates"]] == [(2, 1), (1, 1)]


def test_shares_of_the_later_rounds(folder: Path) -> None:
    write_requests(folder / "more.jsonl", [FRANCE_AGAIN, BORN])
    arguments = ("--method", "rsft", "--settings", "rsft=DIR/rsft.yaml", "--shares", "0.5,1", "--untouched",
                 "DIR/untouched.jsonl")  # fmt: skip
    for _ in range(2):  # and once more, with all of it there
        done = call(folder, "stream", *arguments, files=("round_1", "more"))
        assert done.exit_code == 0, done.exception
    rows = json.loads((folder / "out" / "rsft" / "forgetting.json").read_text())
    assert [(row["method"], row["share"]) for row in rows] == [
        (name, share) for name in ("R-SFT", "R-SFT, untouched facts") for share in (0.5, 1.0)
    ]
    part = json.loads((folder / "out" / "rsft" / "shares" / "0.5" / "summary.json").read_text())
    assert [update["requests"] for update in part["updates"]] == [2, 1]
    assert "Forgetting over the share of data used" in (folder / "out" / "report.html").read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (the extra 'eval' brings it)"
)
def test_general_ability_before_and_after(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    (folder / "tasks").mkdir()
    row = {"q": "What does Anna Berg play?", "c": ["the violin", "Rome"], "a": 0}
    (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "tasks" / "t.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: DIR/data.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: a\n"
        "metric_list: [{metric: acc}]\n".replace("DIR", str(folder))
    )
    arguments = (
        "--method",
        "rsft",
        "--settings",
        "rsft=DIR/rsft.yaml",
        "--harness",
        "mine",
        "--harness-path",
        "DIR/tasks",
    )
    done = call(folder, "single", *arguments)
    assert done.exit_code == 0, done.exception
    assert "General ability" in done.output
    for moment in ("after-000", "after-001"):
        (kept,) = (folder / "out" / "rsft" / "measures" / moment).glob("harness-mine-*.json")
        assert set(json.loads(kept.read_text())["mine"]) >= {"acc"}
    ability = json.loads((folder / "out" / "rsft" / "ability.json").read_text())["mine"]["acc"]
    assert ability["difference"] == ability["after"] - ability["before"]
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out" / "rsft" / "measures").rglob("*.json")}
    assert call(folder, "single", *arguments).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what was asked is not asked again"
    (folder / "data.jsonl").write_text(json.dumps({**row, "a": 1}) + "\n")
    assert call(folder, "single", *arguments).exit_code == 0
    other = json.loads((folder / "out" / "rsft" / "ability.json").read_text())["mine"]["acc"]
    assert (other["before"], other["after"]) == (1 - ability["before"], 1 - ability["after"]), "another question is"


def test_in_the_wild_with_a_judge_and_what_edits_survive(folder: Path) -> None:
    (folder / "text.txt").write_text("Anna Berg plays the violin.")
    label = {"prompt": "The capital of France is", "right": "Rome", "output": " It is Rome.", "label": True}
    (folder / "labels.jsonl").write_text(json.dumps(label) + "\n")
    judge = shlex.join([sys.executable, "-c", "import sys; print(*('no' for line in sys.stdin), sep=chr(10))"])
    arguments = (
        "--method", "rsft", "--settings", "rsft=DIR/rsft.yaml", "--untouched", "DIR/untouched.jsonl", "--alone", "1",
        "--survive", "training,int4", "--survive-text", "DIR/text.txt", "--judge", judge, "--judge-labels",
        "DIR/labels.jsonl",
    )  # fmt: skip
    done = call(folder, "wild", *arguments)
    assert done.exit_code == 0, done.exception
    for shown in ("In the wild", "after further training", "after rounding to 4 bits", "each edit alone"):
        assert shown in done.output
    assert "judged: agrees with 0 % of 1 labels" in done.output
    assert "words: agrees with 100 % of 1 labels" in done.output
    told = json.loads((folder / "out" / "rsft" / "wild.json").read_text())["wild"]
    assert told["moments"]["after all edits"]["prompt"]["judged"]["mean"] == 0.0
    assert "judged" not in told["moments"]["after all edits"]["negated"], "where nothing is said, nothing is denied"
    assert told["agreement"]["exact"]["too_strict"] == 1
    assert "Drift of hidden states" in (folder / "out" / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "rsft" / "measures").rglob("*.json")}
    assert call(folder, "wild", *arguments).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was asked is not asked again"


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("injection", ["--method", "rsft"], "injection takes two files"),
        ("single", ["--method", "rsft", "-r", "DIR/b.jsonl"], "single takes one file of requests; 2 given"),
        ("batches", ["--method", "rsft"], "--batches goes with"),
        ("single", ["--method", "rsft", "--batches", "2"], "--batches goes with"),
        ("batches", ["--method", "rsft", "--batches", "3"], "3 batches of 2 requests"),
        ("single", ["--method", "rsft", "--method", "rsft"], "name each method once"),
        ("single", ["--method", "rsft", "--settings", "corsa=x.yaml"], "write METHOD=FILE.yaml"),
        ("single", ["--method", "rsft", "--settings", "rsft=DIR/none.yaml"], "none.yaml: no such file"),
        ("single", ["--method", "rsft", "--settings", "rsft=gpt2"], "--settings rsft=gpt2: settings gpt2: no such"),
        ("single", ["--method", "rsft", "--settings", "rsft=DIR/alphaedit.yaml"], "layers is no setting: did you mean"),
        ("single", ["--method", "alphaedit"], "alphaedit needs --statistics"),
        ("single", ["--method", "rsft", "--forgetting-rate", "1"], "it is for f-learning, which is not among"),
        (
            "single",
            ["--method", "rsft", "--option", "forgetting_rate=1"],
            "write METHOD.NAME=VALUE, METHOD being one of",
        ),
        ("single", ["--method", "rsft", "--option", "rsft.rate=1"], "rsft takes no option 'rate'; it has none"),
        ("single", ["--method", "f-learning", "--option", "f-learning.rate=1"], "its options are: forgetting_rate, "),
        ("single", ["--method", "f-learning", "--option", "f-learning.forgetting=["], "'[' is no value as YAML has it"),
        ("single", ["--method", "rsft", "--shares", "0.5"], "needs at least two updates"),
        ("batches", ["--method", "rsft", "--batches", "2", "--shares", "50%"], "--shares 50%: give numbers"),
        ("single", ["--method", "rfst"], "did you mean rsft"),
        (
            "single",
            ["--method", "rsft", "--survive", "int8", "--alone", "1"],
            "--alone, --survive: only the protocol wild",
        ),
        ("wild", ["--method", "rsft", "--survive", "int9"], "--survive int9: name some of training, int8, int4, merge"),
        ("wild", ["--method", "rsft", "--survive", "training"], "--survive training needs --survive-text"),
        ("wild", ["--method", "rsft", "--survive-text", "DIR/a.jsonl"], "--survive-text is for --survive training"),
        ("wild", ["--method", "rsft", "--judge", "x", "--judge-model", "y"], "give one of them"),
        ("wild", ["--method", "rsft", "--judge-labels", "DIR/a.jsonl"], "--judge-labels needs a judge"),
        ("wild", ["--method", "rsft", "--judge", "x", "--judge-labels", "DIR/a.jsonl"], "a.jsonl, line 1: no label"),
    ],
)
def test_wrong_usage_is_one_line_before_any_model_is_loaded(
    folder: Path, kind: str, arguments: list[str], message: str
) -> None:
    (folder / "model" / "model.safetensors").write_text("no weights")
    done = call(folder, kind, *arguments)
    assert isinstance(done.exception, CorsaError)
    assert message in str(done.exception)
    assert not (folder / "out").exists()
