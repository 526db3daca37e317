"""LocFT-BF in EasyEdit: what ``BaseEditor`` relies on, and the same training as the method of every protocol."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.data.requests import RequestError
from corsa_plugins.methods.locft.settings import LocFTSettings
from corsa_plugins.methods.registry import method_spec
from easyedit_ext import LocFTBFHyperParams, RSFTHyperParams, apply_locft_bf_to_model, edit_report, hparams_path
from easyedit_ext.hparams import HparamsError
from easyedit_ext.registration import easyedit_methods
from easyedit_ext.requests import to_requests
from tests.easyedit_ext.conftest import REQUESTS, changed, weights
from tests.support.mixtures import MIXTURES

FIELDS: dict[str, Any] = {"layers": [1], "epochs": 4, "step_size": 2, "learning_rate": 1e-2}
DOWN = {"model.layers.1.mlp.down_proj.weight"}


def hparams(**fields: Any) -> LocFTBFHyperParams:
    return LocFTBFHyperParams(model_name="llama", device="cpu", alg_name="LocFTBF", **{**FIELDS, **fields})


def test_as_easyedit_calls_it(small: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    apply, before, twin = easyedit_methods()["LocFTBF"].apply, weights(small), copy.deepcopy(small)
    assert apply is apply_locft_bf_to_model
    copied, nothing = apply(small, tiny_tokenizer, REQUESTS, hparams(), copy=True)
    assert nothing == {}
    assert not changed(small, before)
    assert edit_report(small) == ()
    edited, originals = apply(small, tiny_tokenizer, REQUESTS, hparams(), return_orig_weights=True, train_ds=None)
    assert edited is small
    assert changed(small, before) == set(originals) == DOWN
    assert not changed(copied, weights(small))
    (record,) = edit_report(small)
    training = record.report.training
    assert (record.alg_name, len(training.losses), training.steps) == ("LocFTBF", 4, 8)
    lines = str(record).splitlines()
    assert "of 3 facts learned in 4 epochs and 8 steps" in lines[0]
    assert "'The capital of France is' -> 'Oslo': " in lines[1]
    with torch.no_grad():  # as BaseEditor puts the weights back
        for name, value in originals.items():
            small.get_parameter(name)[...] = value
    assert not changed(small, before)
    apply(twin, tiny_tokenizer, REQUESTS, hparams(seed=1))
    assert changed(twin, weights(copied)) == DOWN, "another order"


def test_it_is_the_method_of_every_protocol(
    small: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    twin = copy.deepcopy(small)
    apply_locft_bf_to_model(small, tiny_tokenizer, REQUESTS, hparams(seed=5))
    settings = LocFTSettings(layer=1, epochs=4, batch_size=2, learning_rate=1e-2)
    session = method_spec("locft-bf")(settings=settings).start(twin, tiny_tokenizer, seed=5)
    session.update(to_requests(REQUESTS), tmp_path)
    assert not changed(twin, weights(small))


def test_of_a_mixture_without_a_shared_expert_the_routed_ones_train(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_config(MIXTURES["mixtral"][0](vocab_size=len(tiny_tokenizer))).eval()
    before = weights(model)
    _, originals = apply_locft_bf_to_model(model, tiny_tokenizer, REQUESTS, hparams(), return_orig_weights=True)
    assert changed(model, before) == set(originals) == {"model.layers.1.mlp.experts.down_proj"}
    with torch.no_grad():  # as BaseEditor puts the weights back
        for name, value in originals.items():
            model.get_parameter(name)[...] = value
    assert not changed(model, before)


def test_what_cannot_be_changes_nothing(small: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    before = weights(small)
    for bad in ([], [{**REQUESTS[0], "target_new": " "}]):
        with pytest.raises(RequestError):
            apply_locft_bf_to_model(small, tiny_tokenizer, bad, hparams())
    other: Any = RSFTHyperParams(model_name="llama", device="cpu", alg_name="RSFT")
    with pytest.raises(HparamsError, match=r"easyedit_ext\.LocFTBFHyperParams\.from_hparams"):
        apply_locft_bf_to_model(small, tiny_tokenizer, REQUESTS, other)
    assert not changed(small, before)


@pytest.mark.parametrize("model", ["llama3-8b", "qwen2.5-7b", "mistral-7b"])
def test_the_files_have_what_corsa_edits_presets_have(model: str) -> None:
    found = LocFTBFHyperParams.from_hparams(hparams_path("LocFTBF", model))
    assert found.settings() == LocFTSettings.load(model)


def test_prompts_are_trained_as_easyedit_asks_them_unless_it_is_told_otherwise() -> None:
    for said, asked, trained in ((None, False, None), (None, True, True), (False, True, False), (True, False, True)):
        assert hparams(chat_template=said, use_chat_template=asked).settings().chat_template is trained
