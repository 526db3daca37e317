"""What models and their baselines are called, and which of them is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corsa_plugins.bench.evaluation import Evaluation
from corsa_plugins.bench.measure import Subject
from corsa_plugins.errors import SettingError


@pytest.mark.parametrize(
    ("subject", "labels"),
    [
        (Subject("world/model"), ("model", "")),
        (Subject("world/model", label="mine"), ("mine", "")),
        (Subject("hub/model", adapter="runs/facts", baseline="hub/model"), ("facts", "model")),
        (Subject("hub/model", edited="runs/edited/", baseline="hub/model"), ("edited", "model")),
        (Subject("edited/model", baseline="world/model"), ("edited/model", "world/model")),
        (Subject("edited/model", baseline="world/model", label="model"), ("model", "model (baseline)")),
        (Subject("world/model", baseline="world/model"), ("world/model", "world/model (baseline)")),
    ],
)
def test_labels_tell_a_model_from_its_baseline(subject: Subject, labels: tuple[str, str]) -> None:
    assert subject.labels() == labels


def test_a_saved_baseline_keeps_its_label_unless_it_is_the_models(tmp_path: Path, monkeypatch) -> None:
    saved = Evaluation("before", ())
    subject = Subject("world/model", baseline="results")
    assert subject.labels(saved) == ("model", "before")
    assert subject.labels(replace(saved, label="model")) == ("model", "model (baseline)")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Subject(".").labels() == ("here", "")


def test_an_edited_model_takes_no_adapter() -> None:
    with pytest.raises(SettingError, match="--edited and --adapter: give one"):
        Subject("m", adapter="a", edited="e")


def test_the_edited_model_is_loaded_in_place_of_the_model(tmp_path: Path, taught_llama, tiny_tokenizer) -> None:
    for name in ("model", "edited"):
        taught_llama.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            taught_llama.lm_head.weight.mul_(2)
    plain, _ = Subject(str(tmp_path / "model")).load("cpu")
    edited, _ = Subject(str(tmp_path / "model"), edited=str(tmp_path / "edited")).load("cpu")
    assert torch.equal(edited.lm_head.weight, 2 * plain.lm_head.weight)
