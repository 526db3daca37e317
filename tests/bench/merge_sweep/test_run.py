"""A sweep in memory: every point measured once, resumable, and the edited model left as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from corsa_plugins.bench.merge_sweep import SweepGrid, changed_tensors, merged_into, sweep
from corsa_plugins.errors import CorsaError
from tests.support.edited import changed
from tests.support.merges import REQUESTS, UNTOUCHED


def run(base, edited, tokenizer, results, weights=(0.5, 1), densities=(0.2,), per_row=False, **settings):
    settings = {"requests": REQUESTS, "untouched": UNTOUCHED, "progress": False, **settings}
    requests, facts = settings.pop("requests"), settings.pop("untouched")
    grid = SweepGrid(weights, densities, per_row)
    return sweep(base, edited, tokenizer, requests, facts, grid=grid, results=results, **settings)


def test_retained_counts_only_what_the_base_knew(taught_llama, tiny_tokenizer, shaken, tmp_path):
    base, *_ = run(taught_llama, shaken, tiny_tokenizer, tmp_path / "sweep.jsonl", weights=[0.5])
    assert base.right == (True, False)
    assert base.metrics["untouched"] == 0.5
    assert base.retained == 1


def test_the_edited_model_is_what_it_was(taught_llama, tiny_tokenizer, shaken, tmp_path):
    before = copy.deepcopy(shaken.state_dict())
    run(taught_llama, shaken, tiny_tokenizer, tmp_path / "sweep.jsonl")
    with pytest.raises(KeyboardInterrupt), merged_into(shaken, changed_tensors(taught_llama, shaken), 0.5, 0.5):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in shaken.state_dict().items())


class TestResuming:
    def test_a_stopped_sweep_goes_on(self, taught_llama, tiny_tokenizer, shaken, tmp_path):
        whole = run(taught_llama, shaken, tiny_tokenizer, tmp_path / "whole.jsonl")
        lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
        # stopped in the middle of writing the third point
        stopped = tmp_path / "stopped.jsonl"
        stopped.write_text("".join(lines[:3]) + lines[3][:20])
        assert run(taught_llama, shaken, tiny_tokenizer, stopped) == whole
        assert stopped.read_text() == "".join(lines)

    def test_what_is_there_is_not_measured_again(self, taught_llama, tiny_tokenizer, shaken, tmp_path):
        file = tmp_path / "sweep.jsonl"
        run(taught_llama, shaken, tiny_tokenizer, file)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[2]["metrics"]["efficacy"] = 0.123
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(CorsaError, match=r"sweep\.jsonl, line 3, is not what was written"):
            run(taught_llama, shaken, tiny_tokenizer, file)
        for line in lines:  # as it was written before there were checksums
            del line["checksum"]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        points = run(taught_llama, shaken, tiny_tokenizer, file, weights=(0.5, 0.75, 1))
        assert points[1].metrics["efficacy"] == 0.123
        assert len(points) == 5

    @pytest.mark.parametrize(
        ("other", "message"),
        [({"requests": REQUESTS[:1]}, "other requests"), ({"untouched": UNTOUCHED[:1]}, "other untouched"),
         ({"per_row": True}, "other per_row"), ({}, "other edited")],
    )  # fmt: skip
    def test_results_of_another_sweep_are_refused(self, taught_llama, tiny_tokenizer, shaken, tmp_path, other, message):
        file = tmp_path / "sweep.jsonl"
        run(taught_llama, shaken, tiny_tokenizer, file, weights=[0.5])
        model = shaken if other else changed(shaken, 6, "mlp")
        with pytest.raises(CorsaError, match=message):
            run(taught_llama, model, tiny_tokenizer, file, **other)

    def test_the_same_changes_of_another_base_are_another_sweep(self, taught_llama, tiny_tokenizer, shaken, tmp_path):
        file = tmp_path / "sweep.jsonl"
        run(taught_llama, shaken, tiny_tokenizer, file, weights=[0.5])
        for model in (taught_llama, shaken):
            model.model.norm.weight.data[0] += 1e-3
        with pytest.raises(CorsaError, match="other base, edited"):
            run(taught_llama, shaken, tiny_tokenizer, file, weights=[0.5])

    def test_a_file_of_something_else_is_refused(self, taught_llama, tiny_tokenizer, shaken, tmp_path):
        (tmp_path / "notes.txt").write_text("mine\n")
        with pytest.raises(CorsaError, match="holds no results of a sweep"):
            run(taught_llama, shaken, tiny_tokenizer, tmp_path / "notes.txt")
        assert (tmp_path / "notes.txt").read_text() == "mine\n"


class TestBadInput:
    def test_models_that_do_not_differ_or_match(self, taught_llama, tiny_tokenizer, tmp_path):
        from tests.conftest import llama

        with pytest.raises(CorsaError, match="the same in every tensor"):
            run(taught_llama, copy.deepcopy(taught_llama), tiny_tokenizer, tmp_path / "s.jsonl")
        with pytest.raises(CorsaError, match=r"embed_tokens.weight has shape \(9, 32\)"):
            run(taught_llama, llama(9), tiny_tokenizer, tmp_path / "s.jsonl")
        assert not (tmp_path / "s.jsonl").exists()

    def test_settings(self, taught_llama, tiny_tokenizer, shaken, tmp_path):
        for settings, message in (
            ({"requests": []}, "needs both"),
            ({"untouched": UNTOUCHED[1:]}, "answers no untouched fact right"),
        ):
            with pytest.raises(CorsaError, match=message):
                run(taught_llama, shaken, tiny_tokenizer, tmp_path / "s.jsonl", **settings)
