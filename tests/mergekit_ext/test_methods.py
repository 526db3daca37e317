"""R-SFT merged by mergekit against R-SFT merged in memory."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import make_method, run_protocol, temporal_stream
from corsa_plugins.errors import CorsaError
from corsa_plugins.merging.deltas import EditedTensor, merge_deltas
from corsa_plugins.methods.effect import read_effect
from corsa_plugins.model.asking import score_targets
from corsa_plugins.rsft import RSFTSettings
from tests.support.small_plans import BORN, FRANCE, FRANCE_AGAIN, ITALY

SETTINGS = RSFTSettings(layer=1, epochs=1, steps=2, learning_rate=3e-3, weight=0.7, density=0.3)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mergekit_gives_the_weights_of_the_merge_in_memory(
    taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, dtype: torch.dtype
) -> None:
    found = []
    for name in ("rsft-merged", "rsft-mergekit"):
        model = copy.deepcopy(taught_llama).to(dtype)
        before = _weights(model)
        session = make_method(name, settings=SETTINGS).start(model, tiny_tokenizer, seed=0)
        for number, requests in enumerate(([FRANCE, BORN], [ITALY])):
            folder = tmp_path / name / str(number)
            folder.mkdir(parents=True)
            session.update(requests, folder)
            pairs = [(request.prompt, request.target_new) for request in requests]
            told = read_effect(folder)
            assert told["taken"] == sum(score.top1 for score in score_targets(model, tiny_tokenizer, pairs))
            assert told["of"] == len(requests)
        found.append(_weights(model))
        again = copy.deepcopy(taught_llama).to(dtype)
        other = make_method(name, settings=SETTINGS).start(again, tiny_tokenizer, seed=0)
        for number in range(2):
            other.restore(tmp_path / name / str(number))
        assert all(torch.equal(a, b) for a, b in zip(_weights(again).values(), found[-1].values(), strict=True))
        session.close()
        assert all(torch.equal(before[n], value) for n, value in _weights(model).items())
    in_memory, by_mergekit = found
    assert any(not torch.equal(before[n], value) for n, value in by_mergekit.items())
    if dtype == torch.float32:
        assert all(torch.equal(value, by_mergekit[n]) for n, value in in_memory.items())
    else:  # of the edited weights as they are stored: the merge of the second update, on top of the first
        first = load_file(tmp_path / "rsft-mergekit" / "0" / "merged.safetensors")
        edited = load_file(tmp_path / "rsft-mergekit" / "1" / "weights.safetensors")
        for name, base in first.items():
            expected = merge_deltas(base, [EditedTensor(edited[name], SETTINGS.weight, SETTINGS.density)])
            assert torch.equal(by_mergekit[name], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_training_of_rsft_it_gives_what_it_gives_with_its_own(
    taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, dtype: torch.dtype
) -> None:
    plain = replace(SETTINGS, weight=1.0, density=1.0)
    runs = {"own": SETTINGS, "rsft": plain, "shared": SETTINGS}
    found, reports = {}, {}
    for name, settings in runs.items():
        method: Any = make_method("rsft" if name == "rsft" else "rsft-mergekit", settings=settings)
        if name != "own":
            method = method.sharing(tmp_path / "trainings")
        model = copy.deepcopy(taught_llama).to(dtype)
        session = method.start(model, tiny_tokenizer, seed=0)
        for number, requests in enumerate(([FRANCE, BORN], [ITALY])):
            folder = tmp_path / name / str(number)
            folder.mkdir(parents=True)
            session.update(requests, folder)
        found[name], reports[name] = _weights(model), json.loads((tmp_path / name / "0" / "report.json").read_text())
    assert all(torch.equal(value, found["shared"][n]) for n, value in found["own"].items())
    assert reports["shared"]["requests"] == reports["own"]["requests"]
    # Of the first update alone: the second one begins from other weights.
    assert [(tmp_path / "shared" / number / "shared.json").is_file() for number in "01"] == [True, False]
    assert len(list((tmp_path / "trainings").iterdir())) == 3


def test_a_folder_may_have_any_name(taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    session = make_method("rsft-mergekit", settings=SETTINGS).start(taught_llama, tiny_tokenizer, seed=0)
    for name in ("of two words", "a+b", "user@host", "a@b@c+d+e 'f' \"g\""):
        (folder := tmp_path / name).mkdir()
        before = _weights(taught_llama)
        session.update([FRANCE], folder)
        assert any(not torch.equal(before[n], value) for n, value in _weights(taught_llama).items())


def test_the_recipe_stays_and_the_copies_of_the_model_do_not(
    taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan = temporal_stream([[FRANCE, ITALY], [FRANCE_AGAIN]])
    result = run_protocol(
        make_method("rsft-mergekit", settings=SETTINGS), plan, taught_llama, tiny_tokenizer, tmp_path, progress=False
    )
    assert len(result.summary().updates) == 2
    for folder in (tmp_path / "updates").iterdir():
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert recipe["models"][0]["parameters"] == {"weight": 0.7, "density": 0.3}
        assert not (folder / "models").exists()


def test_weights_are_whole_after_mergekit_fails(
    taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _weights(taught_llama)
    session = make_method("rsft-mergekit", settings=SETTINGS).start(taught_llama, tiny_tokenizer, seed=0)
    monkeypatch.setattr(type(taught_llama), "from_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.update([FRANCE], tmp_path)
    session.close()
    assert all(torch.equal(before[n], value) for n, value in _weights(taught_llama).items())


def test_without_weight_and_density_they_are_the_papers() -> None:
    method: Any = make_method("rsft-mergekit", settings=replace(SETTINGS, weight=1.0, density=1.0))
    assert (method.settings.weight, method.settings.density) == (0.8, 0.2)
    held: Any = make_method("rsft-mergekit", settings=RSFTSettings(keep_weight=5.0))
    assert (held.settings.weight, held.settings.density) == (0.8, "auto")
    with pytest.raises(CorsaError, match="its options are: settings"):
        make_method("rsft-mergekit", statistics=None)


def test_an_edit_that_the_merge_undoes_is_reported(
    taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RSFTSettings(layer=1, learning_rate=5e-3, weight=0.8, density=0.2)
    make_method("rsft-mergekit", settings=settings).start(taught_llama, tiny_tokenizer, seed=0).update(
        [FRANCE], tmp_path
    )
    text = "1 reached in training, undone by keeping 20 % of the change, scaled by 0.8"
    assert text in read_effect(tmp_path)["text"]
    assert text in caplog.text


def test_the_density_that_undoes_nothing_is_found_for_the_recipe(
    taught_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = RSFTSettings(layer=1, learning_rate=5e-3, weight=0.8, density="auto")
    found = {}
    for name in ("rsft-merged", "rsft-mergekit"):
        model = copy.deepcopy(taught_llama)
        (folder := tmp_path / name).mkdir()
        make_method(name, settings=settings).start(model, tiny_tokenizer, seed=0).update([FRANCE], folder)
        assert read_effect(folder)["taken"] == 1  # at 0.2 the merge undoes it
        found[name] = _weights(model)
    recipe = yaml.safe_load((tmp_path / "rsft-mergekit" / "recipe.yaml").read_text())
    chosen = json.loads((tmp_path / "rsft-merged" / "report.json").read_text())["density"]
    assert recipe["models"][0]["parameters"] == {"weight": 0.8, "density": chosen}
    assert chosen > 0.2
    assert all(torch.equal(value, found["rsft-mergekit"][n]) for n, value in found["rsft-merged"].items())
