"""UPass and SPass of a small model that was code_writer what to write."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from corsa_plugins.bench.code import ANSWERS, Sampling, check_references, measure_code, update_task
from corsa_plugins.errors import SettingError
from corsa_plugins.journal import OtherWorkError
from tests.support.code import NEW, OLD, UPDATES, code_tasks, problem

GREEDY = Sampling(samples=2, top_p=0.01, max_new_tokens=70)


def test_the_taught_model_says_what_it_was_taught(code_writer, sandbox, tmp_path):
    result = measure_code(*code_writer, code_tasks(), GREEDY, sandbox, label="taught", folder=tmp_path)
    passes = {name: interval.mean for name, interval in result.passes(1).items()}
    assert passes == {"UPass": 0.5, "UPass (trained on)": 1.0, "SPass": 1.0}
    assert result.outcomes()["UPass"] == {"passed": 2, "failed": 2}
    rows = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()[1:]]
    assert [row["answers"][0].strip() for row in rows] == [NEW, OLD, NEW, "return x + 1"]
    assert "unexpected keyword" not in rows[1]["verdicts"][0]["why"]


def test_telling_the_update_is_a_baseline(code_writer, sandbox, tmp_path):
    told = measure_code(
        *code_writer, [update_task(UPDATES[1], prepend=True)], GREEDY, sandbox, label="t", folder=tmp_path
    )
    assert told.passes(1)["UPass"].mean == 1.0


class TestSampling:
    """By a model of a problem's own seed: what is asked beside it changes nothing."""

    warm = Sampling(samples=2, temperature=3.0, top_p=1.0, max_new_tokens=6, batch_size=1)

    def answers(self, code_writer, sandbox, folder, asked, **changes):
        sampling = Sampling(**{**vars(self.warm), **changes})
        result = measure_code(*code_writer, asked, sampling, sandbox, label="t", folder=folder)
        return {each.task_id: each.answers for each in result.problems}

    def test_by_the_seed_alone(self, code_writer, sandbox, tmp_path):
        state = torch.get_rng_state()
        first = self.answers(code_writer, sandbox, tmp_path / "a", code_tasks()[:2])
        assert torch.equal(state, torch.get_rng_state())
        assert self.answers(code_writer, sandbox, tmp_path / "b", code_tasks()[1:2]) == {"old": first["old"]}
        assert len(set(first["far"])) > 1
        assert self.answers(code_writer, sandbox, tmp_path / "c", code_tasks()[1:2], seed=1) != {"old": first["old"]}

    def test_stopped_it_goes_on_and_ends_with_the_same(self, code_writer, sandbox, tmp_path):
        whole = self.answers(code_writer, sandbox, tmp_path, code_tasks()[:2])
        file = tmp_path / ANSWERS
        content = file.read_text()
        file.write_text(content[: content.rindex('"far"') + 40])  # torn in the first problem
        assert self.answers(code_writer, sandbox, tmp_path, code_tasks()[:2]) == whole
        assert file.read_text() == content
        with pytest.raises(OtherWorkError, match="seed"):
            self.answers(code_writer, sandbox, tmp_path, code_tasks()[:2], seed=5)
        with pytest.raises(OtherWorkError, match="problems"):
            self.answers(code_writer, sandbox, tmp_path, code_tasks()[:1])
        other = copy.deepcopy(code_writer[0])
        with torch.no_grad():
            other.lm_head.weight += 0.1
        with pytest.raises(OtherWorkError, match="model"):
            self.answers((other, code_writer[1]), sandbox, tmp_path, code_tasks()[:2])


def test_references_are_run_without_a_model(sandbox):
    broken = problem("broken", reference=OLD)
    result = check_references([*code_tasks(), update_task(broken)], sandbox)
    assert [each.verdicts[0].passed for each in result.problems] == [True, True, True, True, False]


@pytest.mark.parametrize("settings", [{"samples": 0}, {"temperature": 0}, {"top_p": 0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        Sampling(**settings)


def test_problems_of_one_name_and_none(code_writer, sandbox, tmp_path):
    with pytest.raises(SettingError, match="two problems are called 'far'"):
        measure_code(*code_writer, code_tasks() * 2, GREEDY, sandbox, label="t", folder=tmp_path)
    with pytest.raises(SettingError, match="no problems"):
        check_references([], sandbox)
