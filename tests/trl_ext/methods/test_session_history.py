"""The history that a session keeps of every training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import run_protocol, temporal_stream
from corsa_plugins.bench.protocols.folder import UPDATE
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import HISTORY, HistoryError
from corsa_plugins.report.sections.history import history_points
from tests.support.small_plans import FRANCE, FRANCE_AGAIN, ITALY
from tests.trl_ext.conftest import lora
from tests.trl_ext.methods.conftest import QUICK, SETTINGS
from trl_ext.methods import AdapterSettings, corsa, f_learning, lora_sft

EDIT = ("history/edit/logps/new", "history/edit/logps/old", "history/edit/margin")
TRAINING = {**SETTINGS.training, "num_train_epochs": 2, "learning_rate": 1e-2}
METHODS: dict[str, Callable[[AdapterSettings], Any]] = {"lora-sft": lora_sft, "corsa": corsa, "f-learning": f_learning}


def numbers(records: Any) -> list[dict[str, Any]]:
    """Without what it took."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.mark.parametrize("name", list(METHODS))
def test_a_run_keeps_the_history_of_every_update(
    name: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """And it ends where the evaluation right after the update begins."""
    plan = temporal_stream([[FRANCE, ITALY], [FRANCE_AGAIN]])
    method = METHODS[name](AdapterSettings(TRAINING, lora()))
    results = [run_protocol(method, plan, taught_llama, tiny_tokenizer, o, **QUICK) for o in (tmp_path, None)]
    kept, passing = results
    assert set(kept.histories) == set(passing.histories) == {1, 2}
    for number, update in enumerate(plan.sets, start=1):
        records = [record for record in kept.histories[number] if "stage" not in record]
        assert numbers(passing.histories[number]) == numbers(kept.histories[number])
        assert [record["step"] for record in records] == [0, 1, 2]  # an epoch is one step
        said = [record.edit for record in kept.at(number, update.name).records]
        new, old = (sum(v) / len(said) for v in zip(*((s.log_prob_new, s.log_prob_old) for s in said), strict=True))
        assert [records[-1][key] for key in EDIT] == pytest.approx([new, old, new - old], abs=1e-4)
        stages = [record["step"] for record in kept.histories[number] if record.get("stage") == "forgetting"]
        assert stages == ([0, 1, 2] if name == "f-learning" else [])
    assert all(seconds > 0 for seconds in kept.seconds)
    points = history_points(kept.histories[1], name)
    assert {point.run for point in points} == {name, *([f"{name}, forgetting"] if name == "f-learning" else [])}
    (path,) = (tmp_path / "updates").glob(f"001-*/{HISTORY}")
    path.write_text("[1]")
    with pytest.raises(HistoryError, match=r"001-round-1.*history\.json is no list of log records: delete it"):
        run_protocol(method, plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)


def test_whether_a_history_is_kept_is_no_part_of_a_run(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan = temporal_stream([[FRANCE]])
    with_it, without = (f_learning(AdapterSettings(TRAINING, lora(), history_looks=looks)) for looks in (20, 0))
    found = run_protocol(without, plan, taught_llama, tiny_tokenizer, tmp_path / "without", **QUICK)
    assert found.histories == {}
    folders = [tmp_path / "with", tmp_path / "without"]
    again = [run_protocol(with_it, plan, taught_llama, tiny_tokenizer, folder, **QUICK) for folder in folders]
    assert again[0].evaluations == again[1].evaluations == found.evaluations
    assert [set(one.histories) for one in again] == [{1}, set()]
    weights = [json.loads((folder / "updates" / "001-round-1" / UPDATE).read_text())["model"] for folder in folders]
    assert weights[0] == weights[1]
    with pytest.raises(SettingError, match="history_looks is -1"):
        AdapterSettings(history_looks=-1)
