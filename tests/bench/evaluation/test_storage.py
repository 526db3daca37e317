"""An evaluation survives its files."""

from __future__ import annotations

import json
import math

import pytest
import torch

from corsa_plugins.bench.evaluation import ReportError, load_evaluation, save_evaluation
from tests.support.taught import REQUESTS, run


def test_a_saved_evaluation_loads_equal(taught_llama, tiny_tokenizer, tmp_path):
    result = run(taught_llama, tiny_tokenizer, label="right after")
    summary = json.loads(save_evaluation(result, tmp_path / "results").read_text())
    assert load_evaluation(tmp_path / "results") == result
    assert len((tmp_path / "results" / "records.jsonl").read_text().splitlines()) == len(REQUESTS)
    assert summary["label"] == "right after"
    assert summary["metrics"]["efficacy"]["mean"] == pytest.approx(2 / 3)
    assert all(entry["definition"] for entry in summary["metrics"].values())


def test_a_damaged_model_is_still_reported_in_strict_json(taught_llama, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        taught_llama.lm_head.weight.fill_(math.nan)
    save_evaluation(run(taught_llama, tiny_tokenizer), tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["metrics"]["margin"]["mean"] == "nan"
    assert math.isnan(load_evaluation(tmp_path).records[0].edit.log_prob_new)


def test_an_incomplete_folder_is_refused(taught_llama, tiny_tokenizer, tmp_path):
    save_evaluation(run(taught_llama, tiny_tokenizer), tmp_path)
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(ReportError, match=r"records\.jsonl is missing"):
        load_evaluation(tmp_path)
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(ReportError, match="no evaluation this version can read"):
        load_evaluation(tmp_path)
