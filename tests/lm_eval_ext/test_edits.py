"""The task ``edits``, run by lm-evaluation-harness's own command, against our own evaluation."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra 'eval' brings it)")

from lm_eval import evaluate as harness_evaluates
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe, RequestError
from corsa_plugins.errors import SettingError
from lm_eval_ext import TASKS
from tests.conftest import CHAT_TEMPLATE

REQUESTS = [
    EditRequest(
        prompt="The capital of France is",
        target_new="Paris",
        target_old="Rome",
        paraphrases=("What is the capital of France?", "Which city is the capital of France? "),
        neighborhood=(Probe(prompt="The capital of Italy is", answer="Rome", aliases=("Roma",)), Probe(prompt="In")),
        portability=(Probe(prompt="Anna Berg was born in", answer="Oslo"),),
    ),
    EditRequest(prompt="The capital of Spain is ", target_new="Oslo", target_old="Madrid"),
    EditRequest(prompt="Where was Anna Berg born?", target_new="In Madrid"),
]
UNTOUCHED = [Probe(prompt="The capital of Italy is", answer="Rome"), Probe(prompt="She plays", answer="the violin")]
LENGTH = 12


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    write_requests(tmp_path / "facts.jsonl", REQUESTS)
    write_probes(tmp_path / "untouched.jsonl", UNTOUCHED)
    return {"requests": str(tmp_path / "facts.jsonl"), "untouched": str(tmp_path / "untouched.jsonl")}


@pytest.fixture
def no_handlers_left() -> Iterator[None]:
    """The harness's command sets up logging to the standard error of its time."""
    loggers = [logging.getLogger(), logging.getLogger("lm_eval")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def ours(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chat: bool = False) -> dict[str, float]:
    measured = evaluate(
        model, tokenizer, REQUESTS, untouched=UNTOUCHED, max_new_tokens=LENGTH, chat_template=chat, progress=False
    )
    return {name: interval.mean for name, interval in measured.summary().items()}


def theirs(results: dict[str, Any]) -> dict[str, float]:
    return {
        name.removesuffix(",none"): value
        for name, value in results["edits"].items()
        if name.endswith(",none") and "_stderr" not in name
    }


def test_the_harness_own_command_gives_our_figures(
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_handlers_left: None,
) -> None:
    from lm_eval.__main__ import cli_evaluate

    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    # The index of its own thousands of tasks takes the harness eight seconds to read.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "none" / "manager.py"))
    arguments = [
        "run", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'},dtype=float32", "--device", "cpu",
        "--tasks", "edits", "--include_path", str(TASKS), "--metadata", json.dumps(files), "--gen_kwargs",
        f"max_gen_toks={LENGTH}", "--batch_size", "4", "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    cli_evaluate()
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found, expected = theirs(json.loads(file.read_text())["results"]), ours(taught_llama, tiny_tokenizer)
    assert found == pytest.approx(expected, abs=1e-4)
    assert 0 < expected["efficacy"] < 1
    assert {"magnitude", "efficacy_top1", "generality", "portability", "untouched"} <= set(found)
    assert "efficacy" in capsys.readouterr().out
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row["doc"]["prompt"] for row in rows] == [item.prompt for item in (*REQUESTS, *UNTOUCHED)]


def run(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, metadata: dict[str, Any], **settings: Any
) -> dict[str, Any]:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    loaded: Any = manager.load(["edits"])
    loaded["tasks"]["edits"].set_config("generation_kwargs", {"max_gen_toks": LENGTH}, update=True)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    results: Any = harness_evaluates(lm=wrapped, task_dict=loaded, bootstrap_iters=0, **settings)
    return results


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE.replace("|>\n", "|>")])
def test_through_a_chat_template_too(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, files: dict[str, str], template: str
) -> None:
    tiny_tokenizer.chat_template = template
    found = theirs(run(taught_llama, tiny_tokenizer, files, apply_chat_template=True)["results"])
    expected = ours(taught_llama, tiny_tokenizer, chat=True)
    if template == CHAT_TEMPLATE:  # whose last newline the harness scores with the answer
        expected = {name: value for name, value in expected.items() if "log_prob" not in name and "top1" not in name}
    assert found == pytest.approx(expected, abs=1e-4)
    assert "margin" in found


def test_another_file_is_another_task_to_its_cache(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, files: dict[str, str], tmp_path: Path
) -> None:
    write_requests(tmp_path / "one.jsonl", REQUESTS[:1])
    both = [
        run(taught_llama, tiny_tokenizer, {"requests": path}, cache_requests=True)["n-samples"]["edits"]["original"]
        for path in (str(tmp_path / "one.jsonl"), files["requests"])
    ]
    assert both == [1, 3]


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({}, SettingError, "task edits: no file of edit requests: add --metadata"),
        ({"requests": 3}, SettingError, "task edits: requests is 3"),
        ({"requests": "nowhere.jsonl"}, RequestError, "nowhere.jsonl: no such file"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(metadata: dict, error: type[Exception], message: str) -> None:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    with pytest.raises(error, match=message):
        manager.load(["edits"])


def test_the_folder_is_printed_for_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "lm_eval_ext"], capture_output=True, text=True, cwd=TASKS.parents[1])
    assert Path(done.stdout.strip()) == TASKS
    assert (TASKS / "edits.yaml").is_file()
