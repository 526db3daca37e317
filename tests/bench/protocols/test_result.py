"""The summary's arithmetic, on evaluations made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from corsa_plugins.bench.evaluation import Answer, Evaluation, ProbeAnswer, Record
from corsa_plugins.bench.protocols import ProtocolResult, UpdatePlan, comparison_table, temporal_stream
from corsa_plugins.data.requests import EditRequest, Probe

OLD, NEW, OTHER = "old", "new", "other"


def evaluation(requests: list[EditRequest], said: list[str]) -> Evaluation:
    """What was said to each request: to its prompt first, then to each paraphrase."""
    records = []
    for index, (request, words) in enumerate(zip(requests, said, strict=True)):
        answers = []
        for prompt, word in zip((request.prompt, *request.paraphrases), words.split(), strict=True):
            answers.append(
                Answer(
                    prompt=prompt, output=word, says_new=word == NEW, says_old=word == OLD, top1_new=word == NEW,
                    top1_old=word == OLD, log_prob_new=-1.0, log_prob_old=-2.0,
                )
            )  # fmt: skip
        records.append(
            Record(
                index=index, case_id=None, target_new=request.target_new, target_old=request.target_old,
                edit=answers[0], paraphrases=tuple(answers[1:]), neighborhood=(), portability=(),
            )
        )  # fmt: skip
    return Evaluation("", tuple(records), (), {"max_new_tokens": 4, "chat_template": False})


def untouched(right: list[bool]) -> Evaluation:
    answers = [ProbeAnswer(prompt=f"u{i}", answer="yes", output="", says_answer=r, top1=r) for i, r in enumerate(right)]
    return Evaluation("", (), tuple(answers), {"max_new_tokens": 4, "chat_template": False})


def request(name: str, target: str = NEW) -> EditRequest:
    return EditRequest(prompt=name, target_new=target, target_old=OLD, paraphrases=(f"{name}?", f"{name}, or?"))


FIRST, SECOND = [request("a"), request("b"), request("c")], [request("a", "newer"), request("d")]


@pytest.fixture
def plan() -> UpdatePlan:
    return temporal_stream([FIRST, SECOND], untouched=[Probe(prompt="u0", answer="yes"), Probe(prompt="u1")])


@pytest.fixture
def result(plan: UpdatePlan) -> ProtocolResult:
    none = [f"{OLD} {OLD} {OLD}"]
    return ProtocolResult(
        plan,
        "a method",
        {
            (0, "round 1"): evaluation(FIRST, none * 3),
            (0, "round 2"): evaluation(SECOND, none * 2),
            (0, "untouched"): untouched([True, True]),
            # of round 1, request a is replaced in round 2: what becomes of it later is no forgetting
            (1, "round 1"): evaluation(FIRST, ["new new new", "new new new", "other new old"]),
            (1, "untouched"): untouched([True, False]),
            (2, "round 1"): evaluation(FIRST, ["other other other", "old new old", "other other old"]),
            (2, "round 2"): evaluation(SECOND, ["new new new", "other old other"]),
            (2, "untouched"): untouched([False, False]),
        },
        (1.0, 2.0),
    )


def mean(metrics: object, name: str) -> float:
    return metrics[name].mean  # type: ignore[index]


def test_right_after_at_the_end_and_what_was_lost_between(result: ProtocolResult) -> None:
    first, second = result.summary().updates
    assert (first.requests, first.standing, second.standing) == (3, 2, 2)
    assert mean(first.before, "old_retention") == 1.0
    assert mean(first.right_after, "efficacy") == pytest.approx(2 / 3)
    assert mean(first.right_after, "generality") == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert mean(first.right_after, "old_retention") == pytest.approx(1 / 6)
    # of the standing requests b and c alone
    assert mean(first.at_the_end, "generality") == pytest.approx(1 / 4)
    assert mean(first.later, "forgetting") == pytest.approx(((1 - 1 / 2) + (1 / 2 - 0)) / 2)
    assert mean(first.later, "forgetting_edit_prompt") == pytest.approx((1 + 0) / 2)
    # b's second paraphrase came back; c's old answer was there right after the update already
    assert mean(first.later, "old_activation") == pytest.approx(1 / 4)
    assert second.later == {}
    assert mean(second.right_after, "generality") == mean(second.at_the_end, "generality") == 0.5


def test_the_sequence_as_a_whole(result: ProtocolResult) -> None:
    summary = result.summary()
    assert mean(summary.right_after, "generality") == pytest.approx((1 + 1 + 1 / 2 + 1 + 0) / 5)
    assert mean(summary.at_the_end, "generality") == pytest.approx((1 / 2 + 0 + 1 + 0) / 4)
    assert mean(summary.later, "forgetting") == mean(summary.updates[0].later, "forgetting")
    assert [mean(m, "untouched") for m in (summary.untouched_before, *(u.untouched for u in summary.updates))] == [
        1.0, 0.5, 0.0,
    ]  # fmt: skip


def test_where_nothing_stands_there_is_nothing_to_forget(result: ProtocolResult) -> None:
    replaced = [EditRequest(**{**dict(one), "target_new": "newer"}) for one in FIRST]
    plan = temporal_stream([FIRST, replaced])
    said = evaluation(FIRST, ["new new new"] * 3)
    evaluations = {(1, "round 1"): said, (2, "round 1"): said, (2, "round 2"): evaluation(replaced, ["old " * 3] * 3)}
    summary = ProtocolResult(plan, "m", evaluations, (1.0, 1.0)).summary()
    assert (summary.updates[0].standing, summary.updates[0].later, summary.later) == (0, {}, {})
    assert summary.updates[0].at_the_end == {}


def test_it_is_json_and_a_table(result: ProtocolResult) -> None:
    data = json.loads(json.dumps(result.summary().as_dict(), allow_nan=False))
    assert data["updates"][0]["later"]["forgetting"]["mean"] == 0.5
    table = result.table()
    assert table.row_count == 4  # before, two rounds, all
    headings = [str(column.header) for column in table.columns]
    assert "forgetting" in headings
    assert "specificity" not in headings  # there are no neighbours
    cells = {heading: list(column.cells) for heading, column in zip(headings, table.columns, strict=True)}
    assert [str(cell).split(" ")[0] for cell in cells["forgetting"]] == ["", "50.0", "", "50.0"]
    assert [str(cell).split(" ")[0] for cell in cells["untouched"]] == ["100.0", "50.0", "0.0", ""]
    with pytest.raises(KeyError, match="'round 2' was not evaluated at moment 1"):
        result.at(1, "round 2")


def test_methods_side_by_side(result: ProtocolResult) -> None:
    table = comparison_table([result, replace(result, method="another")])
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["method"] == ["a method", "another"]
    assert [str(cell).split(" ")[0] for cell in cells["forgetting"]] == ["50.0", "50.0"]
    assert [str(cell).split(" ")[0] for cell in cells["generality"]] == ["70.0", "70.0"]
    assert [str(cell).split(" ")[0] for cell in cells["untouched at the end"]] == ["0.0", "0.0"]
