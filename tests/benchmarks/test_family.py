"""Sequential edits of the testbed by one method: measured, taken up again where they were stopped, and taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import family
from corsa_plugins.testbed import load_testbed
from tests.fixtures.alphaedit import TestbedBench


@pytest.mark.parametrize("name", ["nas", "locft-bf", "in-context"])
def test_a_stopped_run_goes_on_and_gives_the_model_back(
    testbed_bench: TestbedBench, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = load_testbed()
    before = {n: p.detach().clone() for n, p in bed.model.named_parameters()}
    key: dict[str, Any] = {"method": name, "seed": 3, "edits": 2, "batch": 1}

    def measure(folder: str) -> dict[str, Any]:
        row = family.measure(name, bed, testbed_bench.statistics, key, 5, tmp_path / folder)
        assert not (tmp_path / folder).exists(), "what a stopped run goes on from is of no more use"
        assert all(p.equal(before[n]) for n, p in bed.model.named_parameters())
        return row

    whole = measure("whole")
    assert (whole["made"], whole["refused"]) == (2, None)
    assert whole["of those made"] == whole["efficacy"]
    assert whole["efficacy"] >= 0.5 or name == "in-context", "the testbed was never taught to read"
    assert {whole[figure] for figure in family.FIGURES} <= {k / n for n in (1, 2, 5, 6) for k in range(n + 1)}

    def stopped(*arguments: Any, **options: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(family, "right_answers", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure("stopped")
    assert all(p.equal(before[n]) for n, p in bed.model.named_parameters())
    times = json.loads((tmp_path / "stopped" / "times.json").read_text())
    assert len(times) == 2
    again = measure("stopped")
    assert again["seconds"] == sum(times), "nothing was edited twice"
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert family.table([{**key, **whole}]).row_count == 1
