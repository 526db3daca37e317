"""LoRA SFT, CoRSA and F-Learning through the protocols."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.protocols import run_protocol, single_update, temporal_stream
from corsa_plugins.data.preferences import to_preference_rows
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.edit import save_update
from corsa_plugins.methods.spec import MethodSpec
from tests.conftest import CHAT_TEMPLATE
from tests.fixtures.protocols import FailsOnce
from tests.support.small_plans import BORN, FRANCE, ITALY, PLANS
from tests.trl_ext.conftest import lora
from trl_ext import CoRSAConfig, CoRSATrainer
from trl_ext.methods import AdapterSession, AdapterSettings, FLearningMethod, LoraMethod, corsa, f_learning, lora_sft

QUICK: dict[str, Any] = {"max_new_tokens": 5, "progress": False}
SETTINGS = AdapterSettings(
    {
        "num_train_epochs": 1,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
    },
    lora(),
)
METHODS: dict[str, Callable[[], Any]] = {
    "lora-sft": lambda: lora_sft(SETTINGS),
    "corsa": lambda: corsa(SETTINGS),
    "f-learning": lambda: f_learning(SETTINGS, forgetting_rate=0.2),
}


def facts_of(model: Any) -> dict[str, Any]:
    """What a model is: the values of its weights, its modules, flags and modes."""
    return {
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "flags": [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "own": sorted(vars(model)),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def is_as(model: Any, before: dict[str, Any]) -> bool:
    now = facts_of(model)
    mine, theirs = now.pop("weights"), before["weights"]
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return same and now == {name: value for name, value in before.items() if name != "weights"}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("protocol", list(PLANS))
def test_each_method_through_each_protocol(
    name: str, protocol: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before, plan = facts_of(taught_llama), PLANS[protocol]()
    result = run_protocol(METHODS[name](), plan, taught_llama, tiny_tokenizer, **QUICK)
    assert is_as(taught_llama, before)
    for number, one in enumerate(plan.sets, start=1):
        then, now = result.at(0, one.name), result.at(number, one.name)
        gained = [b.edit.log_prob_new - a.edit.log_prob_new for a, b in zip(then.records, now.records, strict=True)]
        assert all(gain > 0 for gain in gained)


def test_an_update_is_the_training_that_has_its_name(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = AdapterSettings(SETTINGS.training)  # with the paper's adapter, as the demo trains it
    adapters = []
    for method, own in ((lora_sft(settings), {"dpo_weight": 0.0, "sam_rho": 0.0}), (corsa(settings), {})):
        session = method.start(taught_llama, tiny_tokenizer, seed=3)
        session.update([FRANCE, BORN], tmp_path / method.name)
        session.close()
        alone = tmp_path / f"{method.name} alone"
        trainer = CoRSATrainer(
            copy.deepcopy(taught_llama),
            args=CoRSAConfig(str(alone), report_to="none", save_strategy="no", seed=3, **settings.training, **own),
            train_dataset=Dataset.from_list(to_preference_rows([FRANCE, BORN])),
            processing_class=tiny_tokenizer,
        )
        trainer.train()
        trainer.save_model()
        found, expected = (
            load_file(f / "adapter_model.safetensors") for f in (tmp_path / method.name / "adapter", alone)
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        adapters.append(found)
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


@pytest.mark.parametrize("name", ["corsa", "f-learning"])
def test_a_stopped_run_goes_on_where_it_was(
    name: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before, plan = facts_of(taught_llama), temporal_stream([[FRANCE], [BORN]])
    whole = run_protocol(METHODS[name](), plan, taught_llama, tiny_tokenizer, **QUICK)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_protocol(FailsOnce(METHODS[name](), 2), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert is_as(taught_llama, before)
    going_on = FailsOnce(METHODS[name](), None)
    result = run_protocol(going_on, plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert [list(requests) for requests in going_on.made] == [[BORN]]
    assert result.evaluations == whole.evaluations
    assert is_as(taught_llama, before)


def test_a_training_that_breaks_off_leaves_the_model_as_it_was(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = facts_of(taught_llama)
    with torch.no_grad():
        damaged = copy.deepcopy(taught_llama)
        damaged.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    nan = facts_of(damaged)
    with pytest.raises(FloatingPointError):
        run_protocol(METHODS["corsa"](), temporal_stream([[FRANCE]]), damaged, tiny_tokenizer, **QUICK)
    assert facts_of(damaged)["modules"] == nan["modules"]
    assert facts_of(damaged)["own"] == nan["own"]
    assert facts_of(damaged)["flags"] == nan["flags"]
    assert is_as(taught_llama, before)


@pytest.mark.parametrize("spec", [lora_sft, f_learning])
def test_what_is_saved_answers_as_the_session_did(
    spec: MethodSpec, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """An adapter of the model that was given; of F-Learning, of the weights with the forgetting."""
    before, ids = facts_of(taught_llama), torch.arange(20)[None]
    with torch.no_grad():
        bare = taught_llama(ids).logits
    saved = save_update(
        spec(SETTINGS), taught_llama, tiny_tokenizer, [FRANCE, BORN], tmp_path / "edited", changes=spec.changes
    )
    assert is_as(taught_llama, before)
    base = copy.deepcopy(taught_llama)
    (tmp_path / "alone").mkdir()
    session = spec(SETTINGS).start(taught_llama, tiny_tokenizer, seed=0)
    session.update([FRANCE, BORN], tmp_path / "alone")
    assert (saved.model is None) == (spec is lora_sft)
    loaded: Any = base if saved.model is None else LlamaForCausalLM.from_pretrained(saved.model)
    adapted = PeftModel.from_pretrained(loaded, str(saved.adapter)).eval()
    with torch.no_grad():
        expected = session.model.eval()(ids).logits
        torch.testing.assert_close(adapted(ids).logits, expected)
        assert not torch.allclose(expected, bare, atol=1e-3)


def test_an_adapter_of_facts_that_are_known_is_not_there(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    known = EditRequest(prompt=FRANCE.prompt, target_new="Paris")
    saved = save_update(
        lora_sft(SETTINGS), taught_llama, tiny_tokenizer, [known], tmp_path / "edited", changes=lora_sft.changes
    )
    assert (saved.model, saved.adapter) == (None, None)
    assert not list((tmp_path / "edited").iterdir())


@pytest.mark.parametrize("name", list(METHODS))
def test_prompts_are_trained_in_the_form_they_are_asked_in(
    name: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    plan, spec = single_update([FRANCE]), {"lora-sft": lora_sft, "corsa": corsa, "f-learning": f_learning}[name]

    def trained(said: bool | None, asked: bool) -> dict[str, Tensor]:
        folder, settings = tmp_path / f"{said} {asked}", replace(SETTINGS, conversational=said)
        run_protocol(spec(settings), plan, taught_llama, tiny_tokenizer, folder, chat_template=asked, **QUICK)
        described = json.loads((folder / "run.json").read_text())["method"]
        assert described["conversational"] == (asked if said is None else said)
        return load_file(folder / "updates" / "001-update" / "adapter" / "adapter_model.safetensors")

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    chat, plain = trained(None, True), trained(None, False)
    assert same(chat, trained(True, True))
    assert same(plain, trained(False, True)), "what the settings say is kept"
    assert not same(chat, plain)


# --- F-Learning ------------------------------------------------------------------------------------------------------


def merged(peft: PeftModel) -> dict[str, Tensor]:
    """The weights with the adapter in, by PEFT's own arithmetic."""
    return dict(copy.deepcopy(peft).merge_and_unload().state_dict())


def swapped(request: EditRequest) -> EditRequest:
    data = {**dict(request), "target_new": request.target_old, "target_old": request.target_new}
    return EditRequest(**data)


def gpt2(vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_forgotten_is_what_learning_the_old_answers_changes(
    family: str, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """theta' = theta - lambda (FT(theta, old) - theta), in both of two updates; then the adapter alone learns."""
    model: Any = taught_llama if family == "llama" else gpt2(len(tiny_tokenizer))
    before, rate = facts_of(model), 0.2
    # GPT-2 stores its weights the other way round
    settings = AdapterSettings(SETTINGS.training, lora(fan_in_fan_out=family == "gpt2"))
    session: Any = f_learning(settings, forgetting_rate=rate).start(model, tiny_tokenizer, seed=0)
    for number, request in enumerate((FRANCE, ITALY)):
        clone: AdapterSession = copy.deepcopy(session)
        theta = merged(clone.peft) if clone.peft else dict(clone.base.state_dict())
        theta = {name: tensor.clone() for name, tensor in theta.items()}
        clone.peft = clone.train([swapped(request)], tmp_path / f"old-{number}")
        tuned = merged(clone.peft)
        bare = weights_below(session)
        (folder := tmp_path / str(number)).mkdir()
        session.update([request], folder)
        changed = 0
        for name, weight in weights_below(session).items():
            expected = bare[name] - rate * (tuned[name] - theta[name])
            torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)
            changed += not torch.equal(weight, bare[name])
        assert changed >= 4
    session.close()
    assert is_as(model, before)


def weights_below(session: Any) -> dict[str, Tensor]:
    """The base weights without the adapter, named as in a bare model."""
    found = {}
    for name, tensor in session.base.state_dict().items():
        if "lora_" not in name:
            found[name.replace(".base_layer", "")] = tensor.clone()
    return found


def test_without_forgetting_it_is_lora_sft(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """lambda 0 subtracts nothing, and so does a training on old answers that stands still."""
    plan = temporal_stream([[FRANCE]])
    still = f_learning(SETTINGS, forgetting_rate=0.5, forgetting={"learning_rate": 0.0})
    methods = (lora_sft(SETTINGS), f_learning(SETTINGS, forgetting_rate=0), still, f_learning(SETTINGS))
    results = [run_protocol(method, plan, taught_llama, tiny_tokenizer, **QUICK) for method in methods]
    sft, none, unmoved, some = (result.at(1, "round 1").records for result in results)
    assert sft == none == unmoved
    assert sft != some


# --- What is refused, and what is filled in --------------------------------------------------------------------------


def test_old_answers_are_filled_in_and_known_facts_left_alone(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    session: Any = f_learning(SETTINGS).start(taught_llama, tiny_tokenizer, seed=0)
    bare = EditRequest(prompt=FRANCE.prompt, target_new=FRANCE.target_new)
    assert [request.target_old for request in session.filled([bare])] == ["Paris"]
    before = facts_of(taught_llama)
    session.update([EditRequest(prompt=FRANCE.prompt, target_new="Paris")], tmp_path)
    assert session.model is taught_llama
    session.restore(tmp_path)
    assert session.model is taught_llama
    assert is_as(taught_llama, before)


def test_a_model_with_an_adapter_is_refused(tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any) -> None:
    with pytest.raises(SettingError, match="has an adapter already"):
        lora_sft(SETTINGS).start(get_peft_model(tiny_llama, lora()), tiny_tokenizer, seed=0)


def test_a_quantised_model_is_refused_by_f_learning(tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any) -> None:
    weight = tiny_llama.model.layers[0].mlp.down_proj.weight
    packed = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    tiny_llama.model.layers[0].mlp.down_proj.weight = packed
    with pytest.raises(SettingError, match=r"down_proj\.weight is stored as torch\.int8: F-Learning subtracts"):
        FLearningMethod(SETTINGS).start(tiny_llama, tiny_tokenizer, seed=0)


def test_settings_that_cannot_be_are_refused() -> None:
    for rate in (-0.1, float("nan"), True, "1"):
        with pytest.raises(SettingError, match="forgetting_rate is"):
            f_learning(SETTINGS, forgetting_rate=rate)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="seed among the training settings"):
        AdapterSettings({"seed": 3})


def test_the_description_tells_methods_apart() -> None:
    described = [make().describe() for make in METHODS.values()]
    assert all(one != other for i, one in enumerate(described) for other in described[:i])
    assert f_learning(SETTINGS, forgetting_rate=0.5).describe() != f_learning(SETTINGS).describe()
    assert LoraMethod("LoRA SFT", {}, SETTINGS).describe() != lora_sft(SETTINGS).describe()
    assert lora_sft().describe() == lora_sft().describe()


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text("num_train_epochs: 3\nlora: {r: 8, lora_alpha: 16}\nconversational: true\nhistory_looks: 5\n")
    method = corsa(str(path))
    assert method.settings.training == {"num_train_epochs": 3}
    assert method.settings.conversational
    assert method.settings.history_looks == 5
    found: Any = method.settings.lora
    assert (found.r, found.lora_alpha, found.target_modules) == (8, 16, "all-linear")
    assert f_learning("testbed").settings.training["num_train_epochs"] == 28
    assert AdapterSettings.from_dict(json.loads(json.dumps(method.settings.as_dict()))) == method.settings
    assert method.settings.as_dict()["lora"] == {"r": 8, "lora_alpha": 16}
    for text, message in (
        ("num_train_epoch: 3", "num_train_epoch is no setting: did you mean num_train_epochs"),
        ("lora: {rank: 8}", r"lora\.rank is no setting: the settings are .*lora_alpha"),
        ("lora: 8", "lora is 8: it must be a mapping of fields of LoraConfig"),
        ("seed: 1", "seed among the training settings"),
        ("- 1", "should be a mapping"),
        ("a: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(SettingError, match=message):
            lora_sft(str(path))
