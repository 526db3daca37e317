"""In the real EasyEdit: MEMIT and ROME of this package are EasyEdit's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditState, KeyStatistics, ValueSettings
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.methods.family.memit import MemitSettings
from corsa_plugins.methods.family.rome import RomeSettings
from corsa_plugins.model.identity import Fingerprint
from tests.easyedit_ext.conftest import TEMPLATES, weights

HOME = os.environ.get("EASYEDIT_HOME")
CONTEXTS = ("{}", "The city is old. {}", "Anna was there. {}")

pytestmark = pytest.mark.skipif(HOME is None, reason="EASYEDIT_HOME names no clone of EasyEdit")

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Oslo", subject="France"),
    EditRequest(prompt="Anna Berg was born in", target_new="New York City", subject="Anna Berg"),
    EditRequest(prompt="The capital of Italy is", target_new="Madrid", subject="Italy"),
]
VALUES = ValueSettings(steps=10, lr=0.1, weight_decay=0.5, clamp=0.75, kl_factor=0.0625)
FIELDS: dict[str, Any] = {
    "fact_token": "subject_last", "v_num_grad_steps": 10, "v_lr": 0.1, "v_loss_layer": 2, "v_weight_decay": 0.5,
    "clamp_norm_factor": 0.75, "kl_factor": 0.0625, "mom2_adjustment": True, "mom2_dataset": "wikipedia",
    "mom2_n_samples": 10, "mom2_dtype": "float32", "device": "cpu", "model_name": "tiny", "stats_dir": "stats",
}  # fmt: skip


@pytest.fixture(scope="session")
def models() -> Callable[[str], Any]:
    """The clone's modules, by their names in ``easyeditor.models``."""
    assert HOME is not None
    sys.path.insert(0, HOME)
    return lambda name: importlib.import_module(f"easyeditor.models.{name}")


def plain(requests: list[EditRequest]) -> list[dict[str, Any]]:
    return [{"prompt": r.prompt, "subject": r.subject, "target_new": r.target_new} for r in requests]


def ours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    statistics: KeyStatistics,
    settings: AlphaEditSettings,
    contexts: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """What an edit of the requests changes; the model is left as it was."""
    before = weights(model)
    state = EditState(Fingerprint.of(model), contexts=contexts)
    editor = AlphaEditor(model, tokenizer, statistics, settings, state=state)
    editor.edit(REQUESTS, answers=False)
    update = {name: tensor - before[name] for name, tensor in weights(model).items()}
    editor.revert_all()
    return update


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], n_layers: int) -> None:
    edited = {name for name, update in expected.items() if update.any()}
    assert len(edited) == n_layers
    assert edited == {name for name, update in found.items() if update.any()}
    for name in edited:
        assert (found[name] - expected[name]).norm() < 1e-3 * expected[name].norm(), name


@pytest.mark.parametrize("layers", [[0], [0, 1]], ids=["one layer", "two layers"])
def test_memit(
    models: Callable[[str], Any],
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    collect: Callable[[PreTrainedModel], str],
    layers: list[int],
) -> None:
    statistics, templates = KeyStatistics.load(collect(model)), TEMPLATES[model.config.model_type]
    settings = MemitSettings.of(MemitSettings(layers=tuple(layers), ridge=2.0, values=VALUES))
    if model.config.model_type == "gpt2":
        templates = {**templates, "lm_head_module": "transformer.wte"}  # tied, as in EasyEdit's own files
    update = ours(model, tiny_tokenizer, statistics, settings, CONTEXTS)
    module = models("memit.memit_main")
    # EasyEdit keeps contexts and covariances in its module: these ones
    module.CONTEXT_TEMPLATES_CACHE = [[CONTEXTS[0]], list(CONTEXTS[1:])]
    name = model.config._name_or_path.replace("/", "_")
    module.COV_CACHE = {
        (name, templates["rewrite_module_tmp"].format(layer)): statistics.moment(layer).float() for layer in layers
    }
    hparams = models("memit.memit_hparams").MEMITHyperParams(
        layers=layers, layer_selection="all", mom2_update_weight=2.0, alg_name="MEMIT", **FIELDS, **templates
    )
    before = weights(model)
    module.apply_memit_to_model(model, tiny_tokenizer, plain(REQUESTS), hparams)
    assert_same(update, {key: tensor - before[key] for key, tensor in weights(model).items()}, len(layers))


def test_rome(
    models: Callable[[str], Any],
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    collect: Callable[[PreTrainedModel], str],
) -> None:
    """One fact after the other; without contexts, where EasyEdit's key is the bare prompt's on both sides."""
    statistics, templates = KeyStatistics.load(collect(model)), TEMPLATES[model.config.model_type]
    values = ValueSettings(**{**VALUES.as_dict(), "at": "ffn"})
    settings = RomeSettings.of(RomeSettings(layers=(1,), values=values))
    update = ours(model, tiny_tokenizer, statistics, settings, CONTEXTS[:1])
    main, directions = models("rome.rome_main"), models("rome.compute_u")
    main.CONTEXT_TEMPLATES_CACHE = [CONTEXTS[0]]
    name = model.config._name_or_path.replace("/", "_")
    key = (name, templates["rewrite_module_tmp"].format(1))
    directions.inv_mom2_cache[key] = torch.inverse(statistics.moment(1).double()).float()
    hparams = models("rome.rome_hparams").ROMEHyperParams(
        layers=[1], context_template_length_params=[[5, 10]], alg_name="ROME", **FIELDS, **templates
    )
    before = weights(model)
    for request in plain(REQUESTS):
        main.apply_rome_to_model(model, tiny_tokenizer, [request], hparams)
    assert_same(update, {name: tensor - before[name] for name, tensor in weights(model).items()}, 1)
