"""lm-evaluation-harness on models in memory, with a task file of our own."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.ability import PRESETS, Harness, compare_ability, general_ability
from corsa_plugins.bench.ability.presets import with_presets
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.methods.in_context.reader import InContextModel
from corsa_plugins.methods.in_context.store import FactStore, InContextSettings
from corsa_plugins.model.asking import generate_answers, score_targets

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (the extra 'eval' brings it)"
)

QUESTIONS = [
    ("The capital of France is", ["Paris", "Rome", "Oslo"], 0),
    ("The capital of Italy is", ["Madrid", "Rome", "Paris"], 1),
    ("Anna Berg was born in", ["Paris", "Madrid", "Oslo"], 2),
    ("The capital of Spain is", ["Oslo", "Paris", "Madrid"], 0),  # told wrong: who knows better misses it
]

TASK = """
task: capitals
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


WRITTEN = """
task: written
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["~"], max_gen_toks: {length}, do_sample: false}}
metric_list:
  - metric: exact_match
"""
LENGTH = 6


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "capitals.jsonl"
    rows = [{"question": q, "choices": choices, "answer": answer} for q, choices, answer in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "capitals.yaml").write_text(TASK.format(data=data))
    asked = tmp_path / "written.jsonl"
    (folder / "written.yaml").write_text(WRITTEN.format(data=asked, length=LENGTH))
    return folder


def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """The share of questions whose right choice is the likeliest, by our own scores."""
    hits = []
    for question, choices, answer in QUESTIONS:
        scores = score_targets(model, tokenizer, [(question, choice) for choice in choices], progress=False)
        hits.append(max(range(len(choices)), key=lambda i: scores[i].log_prob) == answer)
    return sum(hits) / len(hits)


@needs_harness
def test_it_measures_what_the_model_knows_and_leaves_it_alone(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, task_folder: Path
) -> None:
    model = taught_llama.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tiny_tokenizer.pad_token = None
    torch.manual_seed(5)
    random.seed(5)
    found = general_ability(model, tiny_tokenizer, ["capitals"], include_path=task_folder, batch_size=2)
    assert (torch.rand(()).item(), random.random()) == _draws(5)
    assert found["capitals"]["acc"] == accuracy(copy.deepcopy(model).eval(), tiny_tokenizer) == 0.75
    assert found["capitals"]["acc_stderr"] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert tiny_tokenizer.pad_token is None  # the harness needs one, and gave it to a copy
    only = general_ability(model.train(), tiny_tokenizer, "capitals", include_path=task_folder, limit=3)
    assert only["capitals"]["acc"] == 1.0
    assert all(module.training for module in model.modules())


@needs_harness
def test_the_difference_to_another_model(
    taught_llama: LlamaForCausalLM,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    task_folder: Path,
) -> None:
    before = general_ability(taught_llama, tiny_tokenizer, "capitals", include_path=task_folder)
    after = general_ability(tiny_llama, tiny_tokenizer, "capitals", include_path=task_folder)
    change = compare_ability(before, after)["capitals"]["acc"]
    expected = accuracy(tiny_llama, tiny_tokenizer)
    assert (change.before, change.after, change.difference) == (0.75, expected, expected - 0.75)


@needs_harness
def test_a_model_that_reads_stored_edits_is_asked_with_them(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, task_folder: Path
) -> None:
    facts = [
        EditRequest(prompt="The capital of Spain is", target_new="Oslo", subject="Spain"),
        EditRequest(prompt="Anna Berg was born in", target_new="Paris", subject="Anna Berg"),
    ]
    reader = InContextModel(taught_llama, tiny_tokenizer, FactStore(facts, InContextSettings(form="x {fact}\n")))
    questions = [question for question, _, _ in QUESTIONS]
    told, plain = (
        [each.text for each in generate_answers(model, tiny_tokenizer, questions, max_new_tokens=LENGTH)]
        for model in (reader, taught_llama)
    )
    assert told[:2] == plain[:2]
    assert told[2] != plain[2]
    rows = [{"question": q, "choices": [answer], "answer": 0} for q, answer in zip(questions, told, strict=True)]
    (task_folder.parent / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict = {"include_path": task_folder, "batch_size": 3}
    found = general_ability(reader, tiny_tokenizer, "capitals,written", **settings)  # type: ignore[arg-type]
    assert found["capitals"]["acc"] == accuracy(reader, tiny_tokenizer)  # type: ignore[arg-type]
    assert found["written"]["exact_match"] == 1.0, "as long as without them, and the same"
    assert general_ability(taught_llama, tiny_tokenizer, "written", **settings)["written"]["exact_match"] < 1.0


@needs_harness
@pytest.mark.slow  # it reads the index of all of the harness's tasks
def test_an_unknown_task_is_named(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    task_folder: Path,
) -> None:
    with pytest.raises(SettingError, match=r"no task capitols in lm-evaluation-harness, nor in .*capitals"):
        general_ability(tiny_llama, tiny_tokenizer, "capitals,capitols", include_path=task_folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": " , "}, "no tasks"),
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"include_path": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        general_ability(None, None, **{"tasks": "mmlu", **settings})


def _draws(seed: int) -> tuple[float, float]:
    torch.manual_seed(seed)
    random.seed(seed)
    return torch.rand(()).item(), random.random()


def test_a_papers_name_stands_for_its_tasks():
    assert with_presets(["hellaswag", "alphaedit-paper", "mmlu"]) == [
        "hellaswag", "sst2", "mrpc", "mmlu", "rte", "cola", "mnli",
    ]  # fmt: skip


@needs_harness
def test_the_papers_tasks_are_the_harness_own_and_without_data_it_is_said_where_they_were_sought(
    taught_llama, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    every = Harness(",".join(PRESETS), limit=1)
    assert every.names == list(dict.fromkeys(task for tasks in PRESETS.values() for task in tasks))
    with pytest.raises(CorsaError, match="sst2 needs nyu-mll/glue/sst2") as refused:
        every.ask(taught_llama, tiny_tokenizer, ["sst2"])
    assert str(tmp_path / "cache") in str(refused.value)
