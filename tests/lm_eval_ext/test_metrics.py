"""Our metrics and our filter in a task file of a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra 'eval' brings it)")

from lm_eval import evaluate as harness_evaluates
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from corsa_plugins.data.answers import contains_answer, is_answer
from corsa_plugins.model.asking import cut_answer, generate_answers, score_targets

ROWS = [
    ("The capital of France is", "Paris", "Rome"),
    ("The capital of Italy is", "Rome", "Madrid"),
    ("The capital of Spain is", "Oslo", "Madrid"),
]
LENGTH = 8

WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{new}}}}"
generation_kwargs: {{until: [], max_gen_toks: {length}, do_sample: false}}
filter_list:
  - name: first_sentence
    filter: [{{function: first_sentence}}, {{function: take_first}}]
metric_list:
  - metric: !function lm_eval_ext.metrics.answer_contained
  - metric: answer_exact
"""

CHOSEN = """
task: chosen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: both
doc_to_target: 0
process_results: !function lm_eval_ext.metrics.new_over_old
metric_list:
  - {{metric: magnitude, aggregation: mean, higher_is_better: true}}
  - {{metric: margin, aggregation: mean, higher_is_better: true}}
"""


def test_they_count_as_our_own_do(
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    choices = [{"prompt": prompt, "new": new, "old": old, "both": [new, old]} for prompt, new, old in ROWS]
    data.write_text("".join(json.dumps(row) + "\n" for row in choices))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "written.yaml").write_text(WRITTEN.format(data=data, length=LENGTH))
    (tmp_path / "tasks" / "chosen.yaml").write_text(CHOSEN.format(data=data))
    loaded: Any = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False).load(["written", "chosen"])
    wrapped = HFLM(pretrained=taught_llama, tokenizer=tiny_tokenizer, batch_size=8)
    results: Any = harness_evaluates(lm=wrapped, task_dict=loaded, bootstrap_iters=0)
    prompts = [prompt for prompt, _, _ in ROWS]
    said = generate_answers(taught_llama, tiny_tokenizer, prompts, max_new_tokens=LENGTH)
    answers = [cut_answer(each.text) for each in said]
    pairs = list(zip(answers, (new for _, new, _ in ROWS), strict=True))
    written = results["results"]["written"]
    contained = sum(contains_answer(*pair) for pair in pairs) / len(pairs)
    assert 0 < contained < 1
    assert written["answer_contained,first_sentence"] == pytest.approx(contained)
    assert written["answer_exact,first_sentence"] == pytest.approx(sum(is_answer(*p) for p in pairs) / len(pairs))

    def scores(place: int) -> list[float]:
        rated = score_targets(taught_llama, tiny_tokenizer, [(row[0], row[place]) for row in ROWS])
        return [score.log_prob for score in rated]

    margins = [new - old for new, old in zip(scores(1), scores(2), strict=True)]
    found = results["results"]["chosen"]
    assert found["margin,none"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert found["magnitude,none"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
