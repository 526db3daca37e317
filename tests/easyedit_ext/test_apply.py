"""The methods keep the contract that ``BaseEditor`` relies on, and remember what is in force, no more."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import easyedit_ext
from corsa_plugins.alphaedit import EditState, StateError
from corsa_plugins.data.requests import RequestError
from corsa_plugins.errors import CorsaError
from corsa_plugins.model.architecture import ArchitectureError
from easyedit_ext import apply_alphaedit_plus_to_model, apply_rsft_to_model, edit_report, reset
from easyedit_ext.hparams import HparamsError
from easyedit_ext.hparams.base import fields_named
from easyedit_ext.records import record_of
from tests.easyedit_ext.conftest import LAYERS, REQUESTS, TEMPLATES, changed, small_model, weights
from tests.support.families import family
from tests.support.mixtures import MIXTURES

METHODS: dict[str, Any] = {"AlphaEditPlus": apply_alphaedit_plus_to_model, "RSFT": apply_rsft_to_model}


@pytest.fixture(params=METHODS)
def method(
    request: pytest.FixtureRequest,
    tiny_tokenizer: PreTrainedTokenizerFast,
    alphaedit_hparams: Callable[..., Any],
    rsft_hparams: Callable[..., Any],
) -> Callable[..., Any]:
    """Apply a method to a model as ``BaseEditor`` does."""
    make = alphaedit_hparams if request.param == "AlphaEditPlus" else rsft_hparams

    def apply(model: PreTrainedModel, requests: Any = REQUESTS, fields: Any = None, **options: Any) -> Any:
        return METHODS[request.param](model, tiny_tokenizer, requests, make(model, **(fields or {})), **options)

    apply.alg_name = request.param  # type: ignore[attr-defined]
    return apply


@pytest.fixture
def edit(tiny_tokenizer: PreTrainedTokenizerFast, alphaedit_hparams: Callable[..., Any]) -> Callable[..., Any]:
    """Apply AlphaEdit+."""

    def apply(model: PreTrainedModel, requests: Any = REQUESTS, fields: Any = None, **options: Any) -> Any:
        hparams = alphaedit_hparams(model, **(fields or {}))
        options.setdefault("return_orig_weights", True)
        return apply_alphaedit_plus_to_model(model, tiny_tokenizer, requests, hparams, **options)

    return apply


def restore(model: PreTrainedModel, originals: dict[str, torch.Tensor]) -> None:
    """As ``BaseEditor`` puts the weights back."""
    with torch.no_grad():
        for name, value in originals.items():
            parameter = model.get_parameter(name)
            parameter[...] = value.to(parameter)


def test_what_comes_back_restores_exactly(model: PreTrainedModel, method: Callable[..., Any]) -> None:
    before = weights(model)
    edited, originals = method(model, return_orig_weights=True, train_ds=None)
    assert edited is model
    assert changed(model, before) <= set(originals)
    assert changed(model, before), "nothing was edited"
    for name, original in originals.items():
        assert torch.equal(original, before[name])
    restore(model, originals)
    assert not changed(model, before)


def test_originals_are_returned_if_asked_for_alone(small: PreTrainedModel, method: Callable[..., Any]) -> None:
    assert method(small)[1] == {}


def test_a_copy_is_edited_and_reported_apart(small: PreTrainedModel, method: Callable[..., Any]) -> None:
    before = weights(small)
    edited, _ = method(small, copy=True)
    assert edited is not small
    assert not changed(small, before)
    assert changed(edited, before)
    assert edit_report(small) == ()
    assert len(edit_report(edited)) == 1


def test_a_copy_goes_on_from_the_edits_in_force(small: PreTrainedModel, edit: Callable[..., Any]) -> None:
    edit(small, REQUESTS[:1])
    before = weights(small)
    edited, _ = edit(small, REQUESTS[1:], copy=True)
    assert not changed(small, before)
    assert [len(edit_report(model)) for model in (small, edited)] == [1, 2]
    assert [len(record_of(model).state.batches) for model in (small, edited)] == [1, 2]  # type: ignore[union-attr]
    edit(small, REQUESTS[1:])
    assert not changed(edited, weights(small))


class _Sealed(dict):
    """A request whose test prompts must not be looked at."""

    def __getitem__(self, name: str) -> Any:
        assert name not in ("rephrase_prompt", "locality", "portability", "loc_prompt"), f"{name} was read"
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Any:
        raise AssertionError("everything was read")

    values = items


def test_test_prompts_stay_out_of_sight(small: PreTrainedModel, method: Callable[..., Any]) -> None:
    twin = copy.deepcopy(small)
    method(small, [_Sealed(request) for request in REQUESTS])
    bare = [{name: r[name] for name in ("prompt", "target_new", "subject", "ground_truth")} for r in REQUESTS]
    method(twin, bare)
    assert not changed(small, weights(twin))
    for record in edit_report(small)[0].requests:
        assert (record.paraphrases, record.neighborhood, record.portability) == ((), (), ())


def test_the_report_has_every_request(small: PreTrainedModel, method: Callable[..., Any]) -> None:
    method(small, REQUESTS[:2])
    method(small, REQUESTS[2:])
    first, second = edit_report(small)
    assert [first.alg_name, second.alg_name] == [method.alg_name] * 2  # type: ignore[attr-defined]
    assert [request.subject for request in first.requests] == ["France", "Anna Berg"]
    assert [request.prompt for request in second.requests] == ["The capital of Italy is"]
    text = str(first)
    assert "'The capital of France is' -> 'Oslo': " in text
    assert len(text.splitlines()) >= 3


def test_after_a_restored_edit_nothing_is_remembered(small: PreTrainedModel, edit: Callable[..., Any]) -> None:
    fresh = copy.deepcopy(small)
    restore(small, edit(small, REQUESTS[:1])[1])
    edit(small, REQUESTS[1:])
    edit(fresh, REQUESTS[1:])
    assert not changed(small, weights(fresh))
    assert [batch.name for batch in record_of(small).state.batches] == ["1"]  # type: ignore[union-attr]
    assert all(r.prior_conflict is None for r in edit_report(small)[-1].report.requests)


def test_after_a_sequential_edit_it_is_remembered(small: PreTrainedModel, edit: Callable[..., Any]) -> None:
    forgetful = copy.deepcopy(small)
    edit(small, REQUESTS[:1])
    edit(small, REQUESTS[1:])
    edit(forgetful, REQUESTS[:1])
    edit(forgetful, REQUESTS[1:], reset_cache=True)
    assert changed(small, weights(forgetful)), "remembering made no difference"
    assert all(r.prior_conflict is not None for r in edit_report(small)[-1].report.requests)
    assert all("France" in r.prior_conflict_with for r in edit_report(small)[-1].report.requests)
    # taken back, the last edit alone is forgotten
    restore(small, edit(small, REQUESTS[1:2])[1])
    edit(small, REQUESTS[2:])
    assert len(record_of(small).state.batches) == 3  # type: ignore[union-attr]


def test_contexts_of_edits_in_force_stay(
    small: PreTrainedModel, edit: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    edit(small, REQUESTS[:1], {"contexts": ["{}", "Anna was there. {}"]})
    assert "contexts" not in caplog.text
    edit(small, REQUESTS[1:], {"contexts": ["{}", "The city is old. {}"]})
    assert "Anna was there" in caplog.text
    state = record_of(small).state
    assert state is not None
    assert state.contexts == ("{}", "Anna was there. {}")


def test_parameters_that_another_method_froze_train(small: PreTrainedModel, method: Callable[..., Any]) -> None:
    twin = copy.deepcopy(small)
    small.requires_grad_(False)  # as EasyEdit's AlphaEdit, ROME and MEMIT leave a model
    method(small)
    method(twin)
    assert not changed(small, weights(twin))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in small.parameters())
    assert all(parameter.requires_grad for parameter in twin.parameters())


def test_two_models_in_turn_do_not_mix(
    small: PreTrainedModel, edit: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    other = small_model("gpt2", len(tiny_tokenizer))
    alone, other_alone = copy.deepcopy(small), copy.deepcopy(other)
    for request in REQUESTS:
        edit(small, [request])
        edit(other, [request])
    for request in REQUESTS:
        edit(alone, [request])
    for request in REQUESTS:
        edit(other_alone, [request])
    assert not changed(small, weights(alone))
    assert not changed(other, weights(other_alone))


def test_records_go_with_their_model(small: PreTrainedModel, edit: Callable[..., Any]) -> None:
    twin, _ = edit(small, REQUESTS[:1], copy=True)
    gone = weakref.ref(twin)
    del twin
    gc.collect()
    assert gone() is None


def test_weights_changed_by_something_else_are_noticed(
    small: PreTrainedModel,
    edit: Callable[..., Any],
    rsft_hparams: Callable[..., Any],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    edit(small, REQUESTS[:1])
    # the down map alone: a change of anything else would make another model of it, with other statistics
    hparams = rsft_hparams(small, modules=["model.layers.1.mlp.down_proj"])
    apply_rsft_to_model(small, tiny_tokenizer, REQUESTS[1:], hparams)
    before = weights(small)
    with pytest.raises(StateError, match=r"easyedit_ext\.reset"):
        edit(small, REQUESTS[1:])
    assert not changed(small, before)
    reset(small)
    assert edit_report(small) == ()
    edit(small, REQUESTS[1:])
    assert len(edit_report(small)) == 1


def test_one_layer_and_many(small: PreTrainedModel, method: Callable[..., Any]) -> None:
    twin = copy.deepcopy(small)
    before = weights(small)
    _, one = method(small, fields={"layers": [1]}, return_orig_weights=True)
    _, both = method(twin, fields={"layers": list(LAYERS)}, return_orig_weights=True)
    assert all(".1." in name for name in one)
    assert {name.split(".")[2] for name in both} == {"0", "1"}
    assert changed(small, before) <= set(one)
    assert changed(twin, before) <= set(both)


def test_names_of_modules_override_what_is_found(model: PreTrainedModel, method: Callable[..., Any]) -> None:
    names = TEMPLATES[model.config.model_type]
    if method.alg_name == "RSFT":  # type: ignore[attr-defined]
        names = {"mlp_module_tmp": names["mlp_module_tmp"]}
    twin = copy.deepcopy(model)
    method(model)
    method(twin, fields=names)
    assert not changed(twin, weights(model))
    before = weights(twin)
    with pytest.raises((ArchitectureError, CorsaError), match="blocks_"):
        method(twin, fields={"mlp_module_tmp": "blocks_.{}.mlp"})
    assert not changed(twin, before)


def test_rsft_trains_the_modules_it_is_told_to(
    small: PreTrainedModel, rsft_hparams: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    hparams = rsft_hparams(small, modules=["model.layers.2.mlp.down_proj"])
    before = weights(small)
    apply_rsft_to_model(small, tiny_tokenizer, REQUESTS, hparams)
    assert changed(small, before) == {"model.layers.2.mlp.down_proj.weight"}


def test_an_ffn_that_is_no_module_is_found(tiny_tokenizer: PreTrainedTokenizerFast, method: Callable[..., Any]) -> None:
    """OPT keeps its FFN's maps in the block, beside the attention."""
    model = family("opt", len(tiny_tokenizer))
    before = weights(model)
    _, originals = method(model, return_orig_weights=True)
    maps = ("fc2",) if method.alg_name != "RSFT" else ("fc1", "fc2")  # type: ignore[attr-defined]
    assert {name.split(".")[-2] for name in originals} == set(maps)
    assert changed(model, before) <= set(originals)
    restore(model, originals)
    assert not changed(model, before)


PARTS_BY_HAND = {
    "two lists": ("layer_module_tmp", r"could each be the blocks: pass layer_module_tmp= with {} .*layer_module_tmp="),
    "no ffn": (
        "mlp_module_tmp",
        r"by hand: mlp_module_tmp= and rewrite_module_tmp= with {} .*instance mlp_module_tmp=",
    ),
    "two norms": ("ln_f_module", r"looks like the final norm: pass ln_f_module=, for instance ln_f_module="),
    "no such down": (
        "rewrite_module_tmp",
        r"^rewrite_module_tmp: LlamaForCausalLM has no module 'model.layers.0.mlp.o",
    ),
    "no down named": ("rewrite_module_tmp", r"is not made as an FFN usually is: pass rewrite_module_tmp=, its last"),
}


def unusual(model: PreTrainedModel, how: str) -> PreTrainedModel:
    """A model in which a part cannot be told."""
    base: Any = model.model
    if how == "two lists":
        base.others = copy.deepcopy(base.layers)
    elif how in ("no ffn", "no down named"):
        for block in base.layers:
            block.mlp.extra = torch.nn.Linear(block.mlp.down_proj.in_features, block.mlp.down_proj.out_features)
    elif how == "two norms":
        base.second = copy.deepcopy(base.norm)
    return model


@pytest.mark.parametrize("how", PARTS_BY_HAND)
def test_what_to_name_by_hand_is_said_in_easyedits_words(
    how: str, small: PreTrainedModel, alphaedit_hparams: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    field, message = PARTS_BY_HAND[how]
    given = {"no such down": "model.layers.{}.mlp.out", "no down named": "model.layers.{}.mlp"}.get(how)
    hparams = alphaedit_hparams(small)
    if given is not None:
        setattr(hparams, "mlp_module_tmp" if how == "no down named" else field, given)
    model = unusual(small, how)
    before = weights(model)
    call = fields_named(type(hparams))(lambda: hparams.architecture(model).norm)
    with pytest.raises(ArchitectureError, match=message) as caught:
        # a norm is looked for when the edit is under way, for which these statistics are another model's
        call() if how == "two norms" else apply_alphaedit_plus_to_model(model, tiny_tokenizer, REQUESTS, hparams)
    assert not re.search(r"(?<![\w$])(blocks|ffn|down|norm)=|^(blocks|ffn|down):", str(caught.value)), (
        "none of the core's arguments"
    )
    assert field in vars(hparams)
    assert not changed(model, before)


def test_rsft_says_its_own_fields(
    small: PreTrainedModel, rsft_hparams: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    hparams = rsft_hparams(small)
    model = unusual(small, "no ffn")
    with pytest.raises(ArchitectureError, match=r"by mlp_module_tmp, for instance .*, or by modules$") as caught:
        apply_rsft_to_model(model, tiny_tokenizer, REQUESTS, hparams)
    assert "ffn=" not in str(caught.value)
    hparams.mlp_module_tmp = "model.layers.{}.mlp"
    before = weights(model)
    apply_rsft_to_model(model, tiny_tokenizer, REQUESTS, hparams)
    assert changed(model, before)


def test_saved_edits_go_on_in_another_process(
    small: PreTrainedModel, edit: Callable[..., Any], tmp_path: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    original, edited_elsewhere = copy.deepcopy(small), copy.deepcopy(small)
    edit(small, REQUESTS[:1])
    edit(small, REQUESTS[1:2])
    easyedit_ext.save(small, tmp_path / "edits")
    easyedit_ext.load(original, tmp_path / "edits")
    assert not changed(original, weights(small))
    assert [one.requests[0].subject for one in edit_report(original)] == ["France", "Anna Berg"]
    edited_elsewhere.load_state_dict(small.state_dict())
    easyedit_ext.load(edited_elsewhere, tmp_path / "edits")
    for twin in (small, original, edited_elsewhere):
        edit(twin, REQUESTS[2:])
    assert not changed(original, weights(small))
    assert not changed(edited_elsewhere, weights(small))
    stranger = small_model("llama", len(tiny_tokenizer), seed=7)
    # the same FFNs, which alone are compared otherwise, in another model
    relative = small_model("llama", len(tiny_tokenizer))
    with torch.no_grad():
        relative.get_parameter("model.layers.0.self_attn.q_proj.weight").mul_(1.5)
    for other in (stranger, relative, small_model("gpt2", len(tiny_tokenizer))):
        before = weights(other)
        with pytest.raises(StateError):
            easyedit_ext.load(other, tmp_path / "edits")
        assert not changed(other, before)


def test_nothing_in_force_is_nothing_to_save(small: PreTrainedModel, edit: Callable[..., Any], tmp_path: Any) -> None:
    with pytest.raises(CorsaError, match="sequential_edit=True"):
        easyedit_ext.save(small, tmp_path / "edits")
    restore(small, edit(small)[1])
    with pytest.raises(CorsaError, match="sequential_edit=True"):
        easyedit_ext.save(small, tmp_path / "edits")
    assert not (tmp_path / "edits").exists()


def test_a_failed_edit_changes_nothing(small: PreTrainedModel, edit: Callable[..., Any]) -> None:
    edit(small, REQUESTS[:1])
    before, state = weights(small), record_of(small).state
    for bad, error in (
        ([{**REQUESTS[1], "subject": None}], RequestError),
        ([{**REQUESTS[1], "target_new": " "}], RequestError),
        ([], RequestError),
    ):
        for options in ({}, {"reset_cache": True}):
            with pytest.raises(error):
                edit(small, bad, **options)
    assert not changed(small, before)
    assert record_of(small).state is state
    assert len(edit_report(small)) == 1
    with torch.no_grad():
        small.get_parameter("model.layers.2.mlp.up_proj.weight")[0, 0] = torch.nan
    before = weights(small)
    with pytest.raises(CorsaError, match="NaN"):
        edit(small, REQUESTS[1:], reset_cache=True)
    assert not changed(small, before)
    assert record_of(small).state is state


def test_an_interrupted_edit_changes_nothing(
    small: PreTrainedModel, edit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(small, REQUESTS[:1])
    before, state = weights(small), record_of(small).state

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EditState, "with_mark", interrupted)  # the new weights are in place by then
        with pytest.raises(KeyboardInterrupt):
            edit(small, REQUESTS[1:])
    assert not changed(small, before)
    assert record_of(small).state is state
    edit(small, REQUESTS[1:])
    assert len(record_of(small).state.batches) == 2  # type: ignore[union-attr]


def test_a_field_changed_to_nonsense_is_named(small: PreTrainedModel, alphaedit_hparams: Callable[..., Any]) -> None:
    hparams = alphaedit_hparams(small)
    hparams.v_lr = -1
    with pytest.raises(HparamsError, match="v_lr is -1"):
        apply_alphaedit_plus_to_model(small, None, REQUESTS, hparams)
    with pytest.raises(HparamsError, match=r"RSFTHyperParams\.from_hparams"):
        apply_rsft_to_model(small, None, REQUESTS, alphaedit_hparams(small))


def test_routed_experts_are_refused_by_name(tiny_tokenizer: PreTrainedTokenizerFast, edit: Callable[..., Any]) -> None:
    config = MIXTURES["mixtral"][0](vocab_size=len(tiny_tokenizer))
    model = AutoModelForCausalLM.from_config(config).eval()
    before = weights(model)
    with pytest.raises(CorsaError, match=r"mlp\.experts is 4 routed experts"):
        edit(model, fields={"layers": [1]})
    assert not changed(model, before)
