"""Judges: commands, models, and how far they agree with labels."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from corsa_plugins.bench.wild import Question, WildAnswer
from corsa_plugins.bench.wild.judge import (
    Agreement,
    CommandJudge,
    Item,
    JudgeError,
    Labelled,
    ModelJudge,
    agreement,
    judge_answers,
    read_labels,
)
from corsa_plugins.model.asking import score_targets

ITEMS = [
    Item("The capital of France is", "Paris", output) for output in (" Paris!", "It is the city on the Seine", "Rome")
]


def command(line):
    return CommandJudge(shlex.join([sys.executable, "-c", line]), timeout=60)


SEINE = command(
    "import json, sys\n"
    "for line in sys.stdin:\n"
    "    item = json.loads(line)\n"
    "    right = 'Seine' in item['output'] or item['right'] in item['output']\n"
    "    print('Yes.' if right else json.dumps({'right': False}))"
)


def test_a_command_judges_line_by_line():
    assert SEINE(ITEMS) == [True, True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("print('yes')", "1 verdicts on 3 answers"),
        ("print('perhaps\\n' * 3)", "is no verdict"),
        ("raise SystemExit('no key')", "it failed \\(1\\): no key"),
    ],
)
def test_a_command_that_does_not_judge_is_an_error(line, message):
    with pytest.raises(JudgeError, match=message):
        command(line)(ITEMS)


def test_a_command_that_is_not_there_is_an_error():
    with pytest.raises(JudgeError, match="cannot be run"):
        CommandJudge("no-such-command-anywhere")(ITEMS)


def test_a_model_judges_by_what_is_likelier(taught_llama, tiny_tokenizer):
    judge = ModelJudge(taught_llama, tiny_tokenizer, "taught", batch_size=2)
    prompt = (
        "Question: The capital of France is\nRight answer: Paris\nAnswer given: Rome\n\n"
        "Does the answer given mean the same as the right answer? Answer yes or no."
    )
    yes, no = score_targets(taught_llama, tiny_tokenizer, [(prompt, "yes"), (prompt, "no")])
    assert judge(ITEMS)[2] is (yes.log_prob > no.log_prob)


def test_agreement_is_counted_and_corrected_for_chance():
    one = Agreement.of([True, True, False, False], [True, False, False, True])
    assert (one.share, one.kappa, one.too_kind, one.too_strict) == (0.5, 0.0, 1, 1)
    assert Agreement.of([True, False], [True, False]).kappa == 1
    assert Agreement.of([True, True], [True, True]).kappa is None
    labels = [Labelled(item, label) for item, label in zip(ITEMS, (True, True, False), strict=True)]
    found = agreement(SEINE, labels)
    assert [found[name].share for name in ("judged", "words", "exact")] == [
        1,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    ]
    assert found["words"].too_strict == 1


def test_verdicts_are_kept_and_a_denied_question_is_turned_round(tmp_path):
    asked = []

    class Counting:
        key = "counting"

        def __call__(self, items):
            asked.extend(items)
            return [item.right in item.output for item in items]

    def answer(output, denied=False):
        return WildAnswer.of(Question("prompt", 0, "?", ("Paris",), denied=denied), output, True)

    answers = [answer("Paris"), answer("Rome"), answer("Paris", denied=True), answer("Rome", denied=True)]
    answers.append(answer(" .", denied=True))  # has no word in it, and denies nothing
    for _ in range(2):
        assert judge_answers(Counting(), answers, tmp_path / "verdicts.jsonl") == [True, False, False, True, False]
    assert len(asked) == 3


def test_labels_are_read_and_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    row = {"prompt": "p", "right": "r", "output": "", "label": True}
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    assert read_labels(path) == [Labelled(Item("p", "r", ""), True)]
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "label": "yes"}), encoding="utf-8")
    with pytest.raises(JudgeError, match="line 2"):
        read_labels(path)
    with pytest.raises(JudgeError, match="No such file"):
        read_labels(tmp_path / "none")
