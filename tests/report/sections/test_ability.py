"""Scores beside those that they are compared with."""

from __future__ import annotations

import re

from corsa_plugins.report.sections import ABILITY
from corsa_plugins.report.sections.ability import HarnessScore


def test_every_score_is_compared_with_its_own_baseline() -> None:
    found = [
        *HarnessScore.of({"t": {"acc": 0.5, "acc_stderr": 0.03}}, "base"),
        *HarnessScore.of({"t": {"acc": 0.75, "acc_stderr": 0.04}}, "first", "base"),
        *HarnessScore.of({"t": {"acc": 0.75, "acc_stderr": 0.04}}, "first"),  # a baseline itself
        *HarnessScore.of({"t": {"acc": 0.7}, "other": {"acc": 0.1}}, "second", "first"),
    ]
    table = str(ABILITY.render(found))
    heads = re.findall(r'<th scope="col">([^<]*)</th>', table)
    assert [head for head in heads if head] == ["base", "first", "difference", "second", "difference"]
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>(.*?)</tr>', table)
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows}
    assert cells["t, acc"] == [
        "0.5000<small>± 0.0300</small>",
        "0.7500<small>± 0.0400</small>",
        "+0.2500<small>± 0.0500</small>",
        "0.7000",
        "-0.0500",  # without a standard error of both there is none of the difference
    ]
    assert cells["other, acc"] == ["", "", "", "0.1000", ""]
