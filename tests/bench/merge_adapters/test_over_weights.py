"""Two adapters over a range of weights: what each forgot."""

from __future__ import annotations

import json

import pytest

from corsa_plugins.bench.merge_adapters import (
    merge_adapters,
    merge_over_weights,
    over_weights_table,
    save_points,
    weighted_adapters,
)
from corsa_plugins.cli.app import main
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from tests.support.merges import OF_ADAPTERS

pytest.importorskip("peft")

REQUESTS = [OF_ADAPTERS["a"], OF_ADAPTERS["b"]]
ASKING = {"device": "cpu", "progress": False}


def paths(two_adapters):
    return [two_adapters.folder / name for name in "ab"]


def test_all_of_the_weight_forgets_nothing_and_the_rest_is_as_one_merge_at_a_time(two_adapters):
    points = merge_over_weights(paths(two_adapters), REQUESTS, [0, 0.25, 1], method="m", **ASKING)
    assert [point.weights for point in points] == [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)]
    assert points[2].first.mean == points[0].second.mean == 0.0
    adapters = weighted_adapters(paths(two_adapters), (0.25, 0.75), REQUESTS)
    one = merge_adapters(adapters, two_adapters.folder / "ab", **ASKING)
    lost = [
        [own - now for own, now in zip(each.own.values("efficacy"), each.merged.values("efficacy"), strict=True)]
        for each in one.forgetting
    ]
    assert points[1].metric == "efficacy"  # not all requests have paraphrases
    assert [points[1].first.mean, points[1].second.mean] == [sum(values) / len(values) for values in lost]
    assert points[1].union.mean == sum(lost[0] + lost[1]) / 2


def test_in_full_both_adapters_change_the_model_as_much_as_alone(two_adapters, monkeypatch):
    """The same weights, twice as large; one adapter has twice the weight that it has alone."""
    (half,) = merge_over_weights(paths(two_adapters), REQUESTS, [0.5], total=2.0, **ASKING)
    assert half.weights == (1.0, 1.0)


def test_generality_where_every_request_has_paraphrases(two_adapters):
    asked = [[EditRequest(**{**dict(each), "paraphrases": ("Well, what?",)}) for each in part] for part in REQUESTS]
    assert merge_over_weights(paths(two_adapters), asked, [0.5], **ASKING)[0].metric == "generality"


@pytest.mark.parametrize(
    ("requests", "weights", "message"),
    [
        (REQUESTS[:1], [0.5], "two adapters, and the requests of each"),
        ([REQUESTS[0], []], [0.5], "two adapters, and the requests of each"),
        (REQUESTS, [], "from 0 to 1"),
        (REQUESTS, [0.5, 1.5], "from 0 to 1"),
        (REQUESTS, [float("nan")], "from 0 to 1"),
    ],
)
def test_what_cannot_be(two_adapters, requests, weights, message):
    with pytest.raises(CorsaError, match=message):
        merge_over_weights(paths(two_adapters), requests, weights, **ASKING)


def test_the_command_and_the_page(two_adapters, capsys, monkeypatch):
    monkeypatch.chdir(two_adapters.folder)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        return stop.value.code, capsys.readouterr()

    for name, total in (("one", "1"), ("both", "2")):
        code, said = run("merge-adapters", "a", "b", "--over", "0,0.5,1", "--total", total, "-r", "a.jsonl", "-r",
                         "b.jsonl", "--label", name, "-o", name, "--device", "cpu", "--quiet")  # fmt: skip
        assert code == 0, said.err
    assert len(json.loads((two_adapters.folder / "one" / "merging.json").read_text())) == 3
    code, said = run("report", "one", "both", "-o", "page.html")
    assert code == 0, said.err
    page = (two_adapters.folder / "page.html").read_text()
    assert "Merged adapters" in page
    assert "Forgetting by merging two adapters" in page
    assert ">both<" in page
    code, said = run("merge-adapters", "a", "b", "--over", "0.5", "--weights", "1", "-o", "x", "--quiet")
    assert code == 2
    assert "--over has weights of its own" in said.err


def test_the_table_is_of_every_point(two_adapters, tmp_path):
    points = merge_over_weights(paths(two_adapters), REQUESTS, [0, 1], method="m", **ASKING)
    assert over_weights_table(points).row_count == 2
    save_points(points, tmp_path / "new")
    assert [row["weights"] for row in json.loads((tmp_path / "new" / "merging.json").read_text())] == [[0, 1], [1, 0]]
