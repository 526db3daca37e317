"""Hyper-parameters: EasyEdit's files load, ours are complete, and what is wrong is named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.auto.choose import start_settings
from corsa_plugins.alphaedit.auto.layers import likely_layers, windows
from corsa_plugins.alphaedit.settings import AlphaEditSettings, preset_names
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.values.search import ValueSettings
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.rsft import RSFTSettings
from easyedit_ext.hparams import (
    METHODS,
    AlphaEditPlusHyperParams,
    HparamsError,
    LocFTBFHyperParams,
    RSFTHyperParams,
    hparams_names,
    hparams_path,
)
from easyedit_ext.hparams.base import expect
from easyedit_ext.hparams.family import FAMILY
from tests.model.test_architecture import FAMILIES, build

CLASSES: dict[str, Any] = {
    kind.METHOD: kind for kind in (AlphaEditPlusHyperParams, LocFTBFHyperParams, RSFTHyperParams, *FAMILY)
}
UNTUNED = {
    "llama3.2-3b": 28, "gemma2-9b": 42, "gemma3-4b": 34, "olmo2-7b": 32, "opt-6.7b": 32, "phi4": 40,
    "granite3.3-8b": 40, "glm4-9b": 40,
}  # fmt: skip
"""Models that no settings are published for, and how many blocks they have."""
MODELS = [
    "gpt2-xl", "gpt-j-6B", "llama3-8b", "llama3.1-8b", "qwen2.5-7b", "qwen3-4b", "qwen3-8b", "mistral-7b", *UNTUNED,
]  # fmt: skip

# A file of EasyEdit's AlphaEdit: every field it has, numbers as PyYAML reads them (5e-1 is text to it).
EASYEDITS = """
alg_name: "AlphaEdit"
model_name: "./hugging_cache/gpt-j-6B"
stats_dir: "./data/stats"
P_loc: "./null_space_project.pt"
device: 0
layers: [3,4,5,6,7,8]
clamp_norm_factor: 0.75
layer_selection: "all"
fact_token: "subject_last"
v_num_grad_steps: 25
v_lr: 5e-1
v_loss_layer: 27
v_weight_decay: 0.5
kl_factor: 0.0625
mom2_adjustment: true
mom2_update_weight: 15000
rewrite_module_tmp: "transformer.h.{}.mlp.fc_out"
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp"
attn_module_tmp: "transformer.h.{}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "lm_head"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
nullspace_threshold: 2e-2
L2: 10
"""

MINIMAL: dict[str, dict[str, Any]] = {
    "AlphaEditPlus": {"alg_name": "AlphaEditPlus", "model_name": "gpt2", "device": "cpu", "layers": [3]},
    "LocFTBF": {"alg_name": "LocFTBF", "model_name": "gpt2", "device": "cpu"},
    "RSFT": {"alg_name": "RSFT", "model_name": "gpt2", "device": "cpu"},
    **{kind.METHOD: {"alg_name": kind.METHOD, "model_name": "gpt2", "device": "cpu", "layers": [3]} for kind in FAMILY},
}


PUBLISHED = ["gpt2-xl", "gpt-j-6B", "llama3-8b"]
"""The models that settings of the other methods are published for."""


def models(alg_name: str) -> list[str]:
    if alg_name == "ENCORE":
        return [model for model in PUBLISHED if model != "gpt-j-6B"]
    if alg_name == "LocFTBF":
        return ["llama3-8b", "qwen2.5-7b", "mistral-7b"]
    if alg_name == "SPHERE":
        return ["llama3-8b"]
    if alg_name == "NAS":
        return [*PUBLISHED, "qwen2.5-7b"]
    return MODELS if alg_name in ("AlphaEditPlus", "RSFT") else PUBLISHED


@pytest.mark.parametrize(("alg_name", "model"), [(name, model) for name in METHODS for model in models(name)])
def test_every_model_has_a_file_that_loads(alg_name: str, model: str) -> None:
    path = hparams_path(alg_name, model)
    hparams = CLASSES[alg_name].from_hparams(path)
    assert hparams.alg_name == alg_name
    # EasyEdit chooses the model's class by these parts of its name, and takes any other as a pair
    known = any(part in hparams.model_name.lower() for part in ("gpt", "llama", "qwen2", "qwen3", "mistral"))
    assert known != ("hparams.model_name = (model, tokenizer)" in Path(path).read_text(encoding="utf-8"))
    assert CLASSES[alg_name].from_hparams(path.removesuffix(".yaml")).to_dict() == hparams.to_dict()
    assert set(hparams_names(alg_name)) == set(models(alg_name))


FAMILY_OF = {
    "gpt2-xl": "gpt2", "gpt-j-6B": "gptj", "llama3-8b": "llama3", "llama3.1-8b": "llama3", "llama3.2-3b": "llama3",
    "qwen2.5-7b": "qwen2", "qwen3-4b": "qwen3", "qwen3-8b": "qwen3", "mistral-7b": "mistral", "gemma2-9b": "gemma2",
    "gemma3-4b": "gemma3", "olmo2-7b": "olmo2", "opt-6.7b": "opt", "phi4": "phi4", "granite3.3-8b": "granite",
    "glm4-9b": "glm4",
}  # fmt: skip
"""Which small model is built as the one that a file is for."""


@pytest.mark.parametrize(("alg_name", "model"), [(name, model) for name in METHODS for model in models(name)])
def test_the_parts_that_a_file_names_are_those_that_are_found(alg_name: str, model: str) -> None:
    small = build(FAMILIES[FAMILY_OF[model]][0]())
    parts = find_architecture(small)
    ffn = parts.ffn(1)
    found = {
        "rewrite_module_tmp": template(parts.edited(1).name),
        "layer_module_tmp": template(parts.blocks[1].name),
        "mlp_module_tmp": template(ffn.name),
        "ln_f_module": parts.norm.name,
        "lm_head_module": parts.head.name,
    }
    given = yaml.safe_load(Path(hparams_path(alg_name, model)).read_text(encoding="utf-8"))
    named = {key: value for key, value in given.items() if re.search("_(tmp|module)$", key)}
    assert named == {key: found[key] for key in named}
    if model not in ("gemma2-9b", "gemma3-4b", "llama3.2-3b", "olmo2-7b", "opt-6.7b", "phi4"):  # where they are found
        assert named or alg_name == "LocFTBF"


def template(name: str) -> str:
    return re.sub(r"(?<=\.)1(?=\.|$)", "{}", name, count=1)


@pytest.mark.parametrize(("alg_name", "model"), [("AlphaEdit", "gpt2-xl"), ("AlphaEditPlus", "llama-3-8b")])
def test_a_file_that_is_not_there_is_answered_with_those_that_are(alg_name: str, model: str) -> None:
    with pytest.raises(SettingError, match=r"AlphaEditPlus, .*RSFT|did you mean 'llama3-8b'"):
        hparams_path(alg_name, model)


def test_the_papers_values_are_in_the_files() -> None:
    thresholds = {"gpt2-xl": 3.0e-4, "gpt-j-6B": 1.2e-4, "llama3-8b": 1.4e-4}
    for model, threshold in thresholds.items():
        settings = AlphaEditPlusHyperParams.from_hparams(hparams_path("AlphaEditPlus", model)).settings()
        assert settings.search is not None
        assert settings.smoothing is not None
        assert settings.search.decides == "threshold"
        assert (settings.search.threshold, settings.ridge, settings.prior_weight) == (threshold, 10, 100)
        assert (settings.smoothing.steps, settings.smoothing.share, settings.smoothing.tolerance) == (10, 0.2, 2e-4)
        assert (settings.smoothing.over_median, settings.smoothing.selection) == (0, "early_stop")
        assert settings.validation_score == "accuracy"
    for model in ("qwen2.5-7b", "qwen3-8b", "mistral-7b"):  # none is published: the price decides, on any model
        settings = AlphaEditPlusHyperParams.from_hparams(hparams_path("AlphaEditPlus", model)).settings()
        assert settings.search == SearchSettings()
        assert settings.smoothing == SmoothingSettings()
    rsft = RSFTHyperParams.from_hparams(hparams_path("RSFT", "qwen2.5-7b"))
    assert (rsft.layers, rsft.epochs, rsft.steps, rsft.loss_threshold, rsft.learning_rate) == ([5], 5, 6, 0.1, 5e-4)


@pytest.mark.parametrize("model", UNTUNED)
def test_models_that_nothing_is_published_for_have_general_settings(model: str) -> None:
    settings = AlphaEditPlusHyperParams.from_hparams(hparams_path("AlphaEditPlus", model)).settings()
    assert settings == start_settings(settings.layers)
    assert settings.layers in windows(likely_layers(UNTUNED[model]))
    assert RSFTHyperParams.from_hparams(hparams_path("RSFT", model)).layers == [RSFTSettings().layer_of(UNTUNED[model])]


def test_an_alphaedit_file_loads_after_changing_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "gpt-j-6B.yaml"
    path.write_text(EASYEDITS.replace('"AlphaEdit"', '"AlphaEditPlus"'))
    hparams = AlphaEditPlusHyperParams.from_hparams(path)
    settings = hparams.settings()
    assert settings.layers == (3, 4, 5, 6, 7, 8)
    assert (settings.values.lr, settings.values.loss_layer, settings.null_space.value) == (0.5, 27, 0.02)
    assert (
        settings
        == AlphaEditPlusHyperParams.from_dict(
            {**MINIMAL["AlphaEditPlus"], "layers": [3, 4, 5, 6, 7, 8], "v_lr": 0.5, "v_loss_layer": 27}
        ).settings()
    ), "the new fields have other values than the defaults"
    path.write_text(EASYEDITS)
    with pytest.raises(HparamsError, match=r"'AlphaEdit'.*'AlphaEditPlus'"):
        AlphaEditPlusHyperParams.from_hparams(path)


def test_the_three_parts_can_be_switched_off() -> None:
    off = {"conflict_weights": False, "search": False, "smoothing": False, "prior_weight": 1}
    settings = AlphaEditPlusHyperParams.from_dict({**MINIMAL["AlphaEditPlus"], **off}).settings()
    assert settings == AlphaEditPlusHyperParams.from_dict(MINIMAL["AlphaEditPlus"]).settings().alphaedit()


def test_rsft_defaults_are_the_cores() -> None:
    ours, core = RSFTHyperParams.from_dict(MINIMAL["RSFT"]), RSFTSettings()
    assert ours.settings(modules=["m"]) == RSFTSettings(modules=["m"])
    assert ours.layers == [core.layer_of(32)]  # the paper's: a file's blocks are numbers


@pytest.mark.parametrize(
    ("said", "asked", "trained"),
    [(None, False, None), (None, True, True), (False, True, False), (True, False, True)],
)
def test_rsft_trains_prompts_as_easyedit_asks_them_unless_it_is_told_otherwise(
    said: bool | None, asked: bool, trained: bool | None
) -> None:
    hparams = RSFTHyperParams.from_dict({**MINIMAL["RSFT"], "chat_template": said, "use_chat_template": asked})
    assert hparams.settings(modules=["m"]).chat_template is trained


@pytest.mark.parametrize(
    ("alg_name", "changes", "message"),
    [
        ("AlphaEditPlus", {"v_lrr": 1}, r"v_lrr is no setting: did you mean v_lr\?"),
        ("AlphaEditPlus", {"beta": 1, "ridge": 2}, r"beta is no setting: did you mean prior_weight\?; ridge is .*L2\?"),
        ("AlphaEditPlus", {"v_lr": "fast"}, "v_lr is 'fast'"),
        ("AlphaEditPlus", {"v_lr": "fast", "L2": float("nan")}, "v_lr is 'fast'.*L2 is nan"),
        ("AlphaEditPlus", {"L2": 0}, "L2 is 0.0: it must be a number over 0"),
        ("AlphaEditPlus", {"smoothing_share": 2}, "smoothing_share is 2.0"),
        ("AlphaEditPlus", {"search_block": 0}, "search_block is 0"),
        ("AlphaEditPlus", {"nullspace_by": "luck"}, "nullspace_by is 'luck'"),
        ("AlphaEditPlus", {"nullspace_threshold": -1}, "nullspace_threshold is -1.0"),
        ("AlphaEditPlus", {"fact_token": "first"}, "fact_token is 'first'"),
        ("AlphaEditPlus", {"layers": [5, 4]}, "layers is .5, 4.*ascending"),
        ("AlphaEditPlus", {"contexts": ["no place"]}, "contexts"),
        ("AlphaEditPlus", {"mlp_module_tmp": "model.layers.3.mlp"}, "mlp_module_tmp is .*{} once"),
        ("AlphaEditPlus", {"rewrite_module_tmp": "model.{}.{}.mlp"}, "rewrite_module_tmp.*{} once"),
        ("AlphaEditPlus", {"layer_module_tmp": "{model}.{}"}, "layer_module_tmp.*{} once"),
        ("LocFTBF", {"layers": [1, 2]}, r"layers is \[1, 2\]: it must be a list of the number of one block"),
        ("LocFTBF", {"step_size": 0}, "step_size is 0"),
        ("LocFTBF", {"trains": "all"}, "trains is 'all'"),
        ("LocFTBF", {"layer": 3}, r"layer is no setting: did you mean layers\?"),
        ("RSFT", {"lr": 1e-3}, "did you mean learning_rate"),
        ("RSFT", {"layers": []}, r"layers is \[\]"),
        ("RSFT", {"layers": [-1]}, r"layers is \[-1\]"),
        ("RSFT", {"layers": [True]}, r"layers is \[True\]"),
        ("RSFT", {"layers": 5}, "layers is 5: .*list"),
        ("RSFT", {"epochs": 0}, "epochs is 0"),
        ("RSFT", {"optimizer": "lion"}, "optimizer is 'lion'"),
        ("RSFT", {"mlp_module_tmp": "mlp"}, "mlp_module_tmp is 'mlp'"),
        ("RSFT", {"device": "tpuu"}, "device is 'tpuu'"),
        ("RSFT", {"device": -1}, "device is -1"),
        ("RSFT", {"device": True}, "device is True"),
        ("RSFT", {"device": None}, "device is None"),
        ("RSFT", {"model_name": 3}, "model_name is 3"),
        ("RSFT", {"model_name": "nowhere.gguf"}, r"nowhere\.gguf: no such file"),
        ("RSFT", {"model_name": ("gpt2", "gpt2")}, r"model_name is \('gpt2', 'gpt2'\): .*pair"),
        ("RSFT", {"batch_size": 0}, "batch_size is 0"),
        ("RSFT", {"alg_name": "FT"}, "alg_name is 'FT'.*'RSFT'"),
        ("RSFT", {"steps": "1e1"}, "steps is '1e1': .*integer"),
        ("RSFT", {"loss_reduction": "most"}, "loss_reduction is 'most'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, alg_name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HparamsError, match=message):
        CLASSES[alg_name].from_dict({**MINIMAL[alg_name], **changes})
    if changes.keys() <= MINIMAL[alg_name].keys() | set(dir(CLASSES[alg_name])):  # set later, it is found when used
        hparams = CLASSES[alg_name].from_dict(MINIMAL[alg_name])
        for name, value in changes.items():
            setattr(hparams, name, value)
        with pytest.raises(HparamsError, match=message):
            expect(hparams, CLASSES[alg_name])


def test_a_gguf_file_is_to_be_written_out_first(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(HparamsError, match="which EasyEdit does not read: write it out first"):
        RSFTHyperParams.from_dict({**MINIMAL["RSFT"], "model_name": str(tmp_path / "a.gguf")})


def test_numbers_that_yaml_reads_as_text() -> None:
    hparams = AlphaEditPlusHyperParams.from_dict({**MINIMAL["AlphaEditPlus"], "v_lr": "5e-1", "v_num_grad_steps": 20.0})
    assert (hparams.v_lr, hparams.v_num_grad_steps) == (0.5, 20)
    hparams.L2 = "1e1"  # type: ignore[assignment]
    expect(hparams, AlphaEditPlusHyperParams)
    assert hparams.settings().ridge == 10


@pytest.mark.parametrize("preset", preset_names())
def test_the_editors_settings_there_and_back(preset: str) -> None:
    for settings in (AlphaEditSettings.load(preset), AlphaEditSettings.load(preset).alphaedit()):
        hparams = AlphaEditPlusHyperParams.from_settings(settings, model_name="gpt2", device="cpu", max_length=7)
        assert hparams.settings() == settings
        assert (hparams.model_name, hparams.max_length) == ("gpt2", 7)


def test_settings_that_have_no_field_are_refused() -> None:
    settings = AlphaEditSettings(layers=(3,))
    given = {"model_name": "gpt2", "device": "cpu"}
    for other in (replace(settings, dtype="float64"), replace(settings, values=ValueSettings(reuse_prefix=False))):
        with pytest.raises(HparamsError, match=r"dtype and values\.reuse_prefix"):
            AlphaEditPlusHyperParams.from_settings(other, **given)
    with pytest.raises(HparamsError, match="L2: already said"):
        AlphaEditPlusHyperParams.from_settings(settings, **given, L2=3)
    with pytest.raises(HparamsError, match="device is missing: it must be the number of a GPU"):
        AlphaEditPlusHyperParams.from_settings(settings, model_name="gpt2")


def test_an_api_key_is_not_shown() -> None:
    hparams = RSFTHyperParams.from_dict({**MINIMAL["RSFT"], "api_key": "not to be seen"})
    assert "not to be seen" not in repr(hparams)
    assert hparams.to_dict()["api_key"] == "not to be seen"


def test_missing_fields_and_the_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("alg_name: AlphaEditPlus\nmodle_name: gpt2\n")
    pattern = r"h\.yaml: modle_name is no setting: did you mean model_name\?; .*device is missing: .*layers is missing"
    with pytest.raises(HparamsError, match=pattern):
        AlphaEditPlusHyperParams.from_hparams(path)
    for text in ("", "- a\n", "a: [", "alg_name"):
        path.write_text(text)
        with pytest.raises(HparamsError, match=r"h\.yaml"):
            AlphaEditPlusHyperParams.from_hparams(path)
    path.write_bytes(b"alg_name: \xff")
    with pytest.raises(HparamsError, match=r"h\.yaml is not UTF-8 text"):
        AlphaEditPlusHyperParams.from_hparams(path)
    with pytest.raises(HparamsError, match=r"none\.yaml: no such file"):
        RSFTHyperParams.from_hparams(tmp_path / "none")


@pytest.mark.parametrize("device", [0, 3, "cpu", "cuda", "cuda:1", "1"])
@pytest.mark.parametrize("alg_name", METHODS)
def test_devices(tmp_path: Path, alg_name: str, device: int | str) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps({**MINIMAL[alg_name], "device": device}))
    assert CLASSES[alg_name].from_hparams(path).device == device
    path = tmp_path / "h.yml"
    path.write_text(yaml.safe_dump({**MINIMAL[alg_name], "device": device}))
    assert CLASSES[alg_name].from_hparams(path).device == device


def test_a_pair_is_kept_as_it_is(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    hparams = RSFTHyperParams.from_dict({**MINIMAL["RSFT"], "model_name": (tiny_llama, tiny_tokenizer)})
    assert hparams.model_name[0] is tiny_llama
    assert hparams.to_dict()["model_name"][1] is tiny_tokenizer
    with pytest.raises(HparamsError, match=r"model_name is \(<\w+>, None\): it must be a name, a folder, or a pair"):
        RSFTHyperParams.from_dict({**MINIMAL["RSFT"], "model_name": (tiny_llama, None)})
