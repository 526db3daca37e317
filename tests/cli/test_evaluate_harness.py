"""``corsa evaluate --harness``: general ability of base and edited model, what is kept of it, and what is not there."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.ability import general_ability
from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.loading import load_model
from tests.support.python import blocked, error_of

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (the extra 'eval' brings it)"
)

QUESTIONS = [
    ("The capital of France is", ["Paris", "Rome", "Oslo"], 0),
    ("The capital of Italy is", ["Madrid", "Rome", "Paris"], 1),
    ("Anna Berg was born in", ["Paris", "Madrid", "Oslo"], 2),
    ("What does Anna Berg play?", ["Rome", "the violin", "Oslo"], 1),
]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture
def home(
    tmp_path: Path,
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A model that knows its facts, an edited one that does not, a requests file and two tasks."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("model", "edited"):
        taught_llama.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            taught_llama.lm_head.weight.mul_(-1)
    write_requests(tmp_path / "r.jsonl", [EditRequest(prompt="The capital of France is", target_new="Oslo")])
    (tmp_path / "tasks").mkdir()
    for name, rows in (("capitals", QUESTIONS), ("first", QUESTIONS[:2])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"question": q, "choices": c, "answer": a}) + "\n" for q, c, a in rows))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return tmp_path


def corsa(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def call(home: Path, capsys: pytest.CaptureFixture[str], *more: Any, tasks: str = "capitals") -> tuple[int, str, str]:
    return corsa(
        capsys, "evaluate", "--model", home / "model", "--requests", home / "r.jsonl", "--harness", tasks,
        "--harness-path", home / "tasks", "--device", "cpu", "--quiet", *more,
    )  # fmt: skip


def own_scores(home: Path, name: str, task: str = "capitals") -> dict[str, float]:
    model, tokenizer = load_model(home / name, device="cpu")
    return general_ability(model, tokenizer, task, include_path=home / "tasks", batch_size=64)[task]


@needs_harness
def test_base_and_edited_model_and_their_difference_are_everywhere(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = home / "results"
    code, out, err = call(home, capsys, "--edited", home / "edited", "--output", results)
    assert code == 0, err
    base, edited = own_scores(home, "model"), own_scores(home, "edited")
    assert base["acc"] > edited["acc"]
    found = json.loads((results / "summary.json").read_text())["general_ability"]
    assert found["scores"]["capitals"] == edited
    assert (found["baseline"], found["baseline_scores"]["capitals"]) == ("model", base)
    change = found["change"]["capitals"]["acc"]
    error = math.hypot(base["acc_stderr"], edited["acc_stderr"])
    assert change == {
        "before": base["acc"],
        "after": edited["acc"],
        "difference": edited["acc"] - base["acc"],
        "stderr": pytest.approx(error),
    }
    shown = f"{edited['acc'] - base['acc']:+.4f}"
    (row,) = [line for line in out.splitlines() if "capitals" in line]
    assert f"{shown} ± {error:.4f}" in row
    page = (results / "report.html").read_text()
    assert f"<td>{base['acc']:.4f}<small>± {base['acc_stderr']:.4f}</small></td>" in page
    assert f"<td>{shown}<small>± {error:.4f}</small></td>" in page
    assert json.loads((results / "baseline" / "summary.json").read_text())["general_ability"]["scores"] == {
        "capitals": base
    }


@needs_harness
def test_what_was_asked_is_not_asked_again_and_serves_as_a_baseline(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = home / "results"
    edited = ("--edited", home / "edited", "--output", results)
    (home / "capitals.jsonl").rename(home / "away.jsonl")
    code, _, err = call(home, capsys, *edited, tasks="first,capitals")
    assert code == 2
    assert "cannot run capitals" in err
    assert not (results / "summary.json").exists()
    shutil.copy(home / "away.jsonl", home / "capitals.jsonl")
    (home / "first.jsonl").unlink()  # of the base model, this task was done, and is not asked again
    code, _, err = call(home, capsys, *edited, tasks="first,capitals")
    assert code == 2
    assert "cannot run first" in err  # of the edited model it was not
    kept = json.loads((results / "baseline" / "harness.json").read_text())
    assert [row["task"] for row in kept["asked"]] == ["first", "capitals"]
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS[:2]]
    (home / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, first, err = call(home, capsys, *edited, tasks="first,capitals")
    assert code == 0, err
    for file in ("first", "capitals"):
        (home / f"{file}.jsonl").unlink()
    assert call(home, capsys, *edited, tasks="first,capitals")[:2] == (0, first)

    # another command, with a folder of results as the baseline; the edited model's scores are kept elsewhere
    (home / "again").mkdir()
    shutil.copy(results / "harness.json", home / "again")
    saved = ("--edited", home / "edited", "--baseline", results / "baseline", "--output", home / "again")
    code, second, err = call(home, capsys, *saved, tasks="first,capitals")
    assert code == 0, err
    assert [line for line in second.splitlines() if "│" in line] == [
        line.replace("baseline", "model") for line in first.splitlines() if "│" in line
    ]
    # other questions are asked anew, and the scores of the old ones are no baseline
    (home / "capitals.jsonl").write_text((home / "away.jsonl").read_text().replace("Oslo", "Bonn"))
    code, _, err = call(home, capsys, *saved)
    assert (code, "from before its data files were changed" in err) == (2, True)
    assert call(home, capsys, *edited)[0] == 0
    assert len(json.loads((results / "harness.json").read_text())["asked"]) == 3
    (home / "capitals.jsonl").unlink()
    # other settings and other models are asked anew: the data are gone, and so it fails
    code, _, err = call(home, capsys, *edited, "--harness-limit", "1")
    assert (code, "cannot run capitals" in err) == (2, True)
    code, _, err = call(home, capsys, "--output", results)
    assert (code, "cannot run capitals" in err) == (2, True)


def test_models_in_folders_of_one_name_are_told_apart_and_a_baseline_is_not_overwritten(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model", "edited"):
        (home / f"of_{name}").mkdir()
        (home / name).rename(home / f"of_{name}" / "model")
    asked = ("--requests", home / "r.jsonl", "--device", "cpu", "--quiet")
    more = ("--baseline", home / "of_model" / "model", "--output", home / "results")
    code, out, err = corsa(capsys, "evaluate", "--model", home / "of_edited" / "model", *asked, *more)
    assert code == 0, err
    assert "of_model/model" in out
    before, after = load_evaluation(home / "results" / "baseline"), load_evaluation(home / "results")
    assert (before.label, after.label) == ("of_model/model", "of_edited/model")
    own = ("--baseline", home / "results", "--output", home / "results")
    code, _, err = corsa(capsys, "evaluate", "--model", home / "of_model" / "model", *asked, *own)
    assert (code, "holds the baseline, which would be lost" in err) == (2, True)
    assert load_evaluation(home / "results") == after


@needs_harness
@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([], "has no scores of lm-evaluation-harness (harness.json is missing)"),
        (["--harness", "first"], "has no scores of capitals; it has first"),
        (["--harness", "capitals", "--harness-limit", "2"], "asked with limit 2 instead of None"),
    ],
)
def test_a_baseline_without_the_scores_is_said_before_a_model_is_loaded(
    home: Path, capsys: pytest.CaptureFixture[str], before: list[str], message: str
) -> None:
    harness = [*before, "--harness-path", home / "tasks"] if before else []
    same = ("--requests", home / "r.jsonl", "--device", "cpu", "--quiet", "--output", home / "before")
    code, _, err = corsa(capsys, "evaluate", "--model", home / "model", *same, *harness)
    assert code == 0, err
    (home / "edited" / "model.safetensors").write_text("no weights")
    code, _, err = call(home, capsys, "--edited", home / "edited", "--baseline", home / "before")
    assert code == 2
    assert message in err
    assert f"--baseline {home / 'before'}" in err
    assert len(err.splitlines()) == 1


@needs_harness
def test_scores_of_a_model_that_was_in_the_folder_before_are_no_baseline(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "results"
    assert call(home, capsys, "--output", folder)[0] == 0
    same = ("--requests", home / "r.jsonl", "--device", "cpu", "--quiet", "--output", folder)
    assert corsa(capsys, "evaluate", "--model", home / "edited", *same)[0] == 0
    code, _, err = call(home, capsys, "--edited", home / "edited", "--baseline", folder)
    assert code == 2
    assert "the scores in harness.json are not those in summary.json" in err


@needs_harness
def test_an_adapter_is_compared_with_the_model_it_is_on(
    home: Path, capsys: pytest.CaptureFixture[str], taught_llama: LlamaForCausalLM
) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(taught_llama, peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=1.0)
    adapted.save_pretrained(home / "adapter")
    code, _, err = call(home, capsys, "--adapter", home / "adapter", "--output", home / "results")
    assert code == 0, err
    found = json.loads((home / "results" / "summary.json").read_text())["general_ability"]
    model, tokenizer = load_model(home / "model", home / "adapter", device="cpu")
    assert found["scores"] == general_ability(model, tokenizer, "capitals", include_path=home / "tasks", batch_size=64)
    assert found["baseline_scores"]["capitals"] == own_scores(home, "model")


@needs_harness
def test_alone_without_a_baseline_and_without_requests(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("evaluate", "--model", home / "model", "--harness", "capitals,first", "--harness-path", home / "tasks")
    code, out, err = corsa(capsys, *arguments, "--output", home / "alone", "--device", "cpu", "--quiet")
    assert code == 0, err
    scores = own_scores(home, "model")
    (row,) = [line for line in out.splitlines() if "capitals" in line]
    assert f"{scores['acc']:.4f} ± {scores['acc_stderr']:.4f}" in row
    assert "difference" not in out
    assert "Efficacy" not in out
    page = (home / "alone" / "report.html").read_text()
    assert "General ability</h2>" in page
    assert "difference" not in page[page.index("<body>") :]
    # and it can be compared with, by itself
    edited = ("--edited", home / "edited", "--baseline", home / "alone", "--output", home / "two")
    code, out, err = corsa(capsys, *arguments, *edited, "--device", "cpu", "--quiet")
    assert code == 0, err
    assert "difference" in out


def test_wrong_usage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (("--harness-limit", "3"), ("--harness-path", home)):
        arguments = ("evaluate", "--model", "m", "--requests", home / "r.jsonl", *option)
        code, _, err = corsa(capsys, *arguments)
        assert (code, "need --harness" in err) == (2, True)


def test_without_lm_eval_it_is_one_line_before_anything_is_loaded(home: Path) -> None:
    arguments = ["evaluate", "--model", "./no model", "--requests", str(home / "r.jsonl"), "--harness", "mmlu"]
    code = (
        "import io, sys\nfrom corsa_plugins.cli.app import main\nsys.stderr = io.StringIO()\n"
        f"try: main({arguments!r})\nexcept SystemExit as exit: print(exit.code, sys.stderr.getvalue())"
    )
    code, _, said = blocked(["lm_eval"], code).partition(" ")
    assert (code, error_of(said)) == ("2", "error: --harness needs lm-eval: pip install 'corsa-plugins[eval]'")


@needs_harness
def test_an_unknown_task_is_said_before_a_model_is_loaded(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The index of its own thousands of tasks takes the harness eight seconds to read: tests/bench/ability does.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(home / "none" / "manager.py"))
    code, _, err = corsa(capsys, "evaluate", "--model", "./no model", "--harness", "capitols")
    assert code == 2
    assert "no task capitols in lm-evaluation-harness" in err
