"""The other methods of the editor in EasyEdit: fields, published values, and what ``BaseEditor`` relies on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.methods.registry import method_specs
from easyedit_ext import edit_report, hparams_path
from easyedit_ext.family import METHODS
from easyedit_ext.hparams import AlphaEditPlusHyperParams, HparamsError, PRUNEHyperParams, hparams_names
from easyedit_ext.hparams.family import FAMILY
from easyedit_ext.registration import easyedit_methods
from tests.easyedit_ext.conftest import REQUESTS, TEMPLATES, changed, weights

CLASSES = {kind.METHOD: kind for kind in FAMILY}
NAMES = {
    "BLUE": "blue",
    "BLUEPlus": "blue+",
    "ENCORE": "encore",
    "KDE": "kde",
    "MEMITPlus": "memit+",
    "NAS": "nas",
    "PRUNE": "prune",
    "PRUNEPlus": "prune+",
    "RECT": "rect",
    "RECTPlus": "rect+",
    "SPHERE": "sphere",
}
MODELS = {"gpt2-xl": "gpt2-xl", "gpt-j-6B": "gpt-j-6b", "llama3-8b": "llama3-8b", "qwen2.5-7b": "qwen2.5-7b"}

PUBLISHED = {"ENCORE": ("gpt2-xl", "llama3-8b"), "NAS": tuple(MODELS), "SPHERE": ("llama3-8b",)}
"""Where it is not for the first three."""

# EasyEdit's MEMIT has these fields
EASYEDITS: dict[str, Any] = {
    "model_name": "./hugging_cache/gpt2-xl", "stats_dir": "./data/stats", "device": 0, "layers": [13, 14, 15, 16, 17],
    "clamp_norm_factor": 0.75, "layer_selection": "all", "fact_token": "subject_last", "v_num_grad_steps": 20,
    "v_lr": "5e-1", "v_loss_layer": 47, "v_weight_decay": 0.5, "kl_factor": 0.0625, "mom2_adjustment": True,
    "mom2_update_weight": 20000, "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj", "model_parallel": False,
    "layer_module_tmp": "transformer.h.{}", "mlp_module_tmp": "transformer.h.{}.mlp", "mom2_dtype": "float32",
    "attn_module_tmp": "transformer.h.{}.attn", "ln_f_module": "transformer.ln_f", "lm_head_module": "transformer.wte",
    "mom2_dataset": "wikipedia", "mom2_n_samples": 100000,
}  # fmt: skip


def test_every_file_is_compared() -> None:
    assert set(NAMES) == set(CLASSES)
    for alg_name in NAMES:
        assert set(hparams_names(alg_name)) == set(PUBLISHED.get(alg_name, ("gpt2-xl", "gpt-j-6B", "llama3-8b")))


@pytest.mark.parametrize(("alg_name", "name"), NAMES.items())
@pytest.mark.parametrize("model", MODELS)
def test_the_files_have_what_corsa_edits_presets_have(alg_name: str, name: str, model: str) -> None:
    if model not in PUBLISHED.get(alg_name, ("gpt2-xl", "gpt-j-6B", "llama3-8b")):
        pytest.skip("no settings for this model are published")
    settings = CLASSES[alg_name].from_hparams(hparams_path(alg_name, model)).settings()
    kind = next(spec for spec in method_specs() if spec.name == name).settings_class()
    preset = kind.of(kind.load(MODELS[model]))
    assert settings.as_dict() | {"values": None} == preset.as_dict() | {"values": None}
    shared = ("steps", "lr", "weight_decay", "clamp", "kl_factor", "at", "stop_most_probable")
    assert [getattr(settings.values, at) for at in shared] == [getattr(preset.values, at) for at in shared]


def test_easyedits_memit_file_loads_after_changing_its_name_alone() -> None:
    hparams = PRUNEHyperParams.from_dict({**EASYEDITS, "alg_name": "PRUNE"})
    settings = hparams.settings()
    assert (settings.penalty, settings.ridge, settings.null_space) == ("outputs", 20000, None)
    assert settings.restraint is not None
    assert (settings.restraint.rule, settings.restraint.base) == ("singular_values", 1.2)
    with pytest.raises(HparamsError, match=r"prune_base is 0\.5"):
        PRUNEHyperParams.from_dict({**EASYEDITS, "alg_name": "PRUNE", "prune_base": 0.5})
    with pytest.raises(HparamsError, match="edits may write anywhere, and search has nothing to add"):
        PRUNEHyperParams.from_dict({**EASYEDITS, "alg_name": "PRUNE", "search": True})


@pytest.mark.parametrize("alg_name", CLASSES)
def test_as_easyedit_calls_it(
    small: PreTrainedModel,
    alg_name: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    collect: Callable[[PreTrainedModel], str],
) -> None:
    fields: dict[str, Any] = {
        "layers": [0, 1], "v_num_grad_steps": 3, "mom2_update_weight": 0.5, "nullspace_by": "share",
        "nullspace_threshold": 0.5, "n_contexts": 1, "stats_dir": collect(small), **TEMPLATES["llama"],
    }  # fmt: skip
    hparams = CLASSES[alg_name](model_name="llama", device="cpu", alg_name=alg_name, **fields)
    apply, before = easyedit_methods()[alg_name].apply, weights(small)
    assert apply is METHODS[alg_name].apply
    edited, originals = apply(small, tiny_tokenizer, REQUESTS, hparams, return_orig_weights=True, train_ds=None)
    assert edited is small
    assert (
        changed(small, before) == set(originals) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    )
    assert edit_report(small)[-1].alg_name == alg_name
    other = AlphaEditPlusHyperParams(model_name="llama", device="cpu", alg_name="AlphaEditPlus", layers=[0])
    with pytest.raises(HparamsError, match=rf"load the file with easyedit_ext\.{CLASSES[alg_name].__name__}"):
        apply(small, tiny_tokenizer, REQUESTS, other)
