"""A model and its adapter, update by update."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.edit import save_update
from corsa_plugins.methods.spec import REPORT, MethodSpec
from corsa_plugins.model.asking import score_targets
from corsa_plugins.testbed import load_testbed
from tests.support.small_plans import BORN, FRANCE
from tests.trl_ext.conftest import lora
from tests.trl_ext.methods.conftest import SETTINGS, facts_of, is_as
from trl_ext.methods import AdapterSettings, corsa, f_learning, lora_sft
from trl_ext.methods.settings import TESTBED_SETTINGS


def test_an_update_moves_the_edited_facts_towards_the_new_answers(tmp_path: Path) -> None:
    testbed = load_testbed()
    requests = testbed.world.edit_rounds(n_rounds=1, size=16, seed=0, untouched=10).rounds[0]
    before = evaluate(testbed.model, testbed.tokenizer, requests, progress=False).summary()
    method = corsa(AdapterSettings(TESTBED_SETTINGS | {"max_steps": 20, "learning_rate": 2e-3}))
    model = method.start(testbed.model, testbed.tokenizer, seed=0).train(requests, tmp_path)
    after = evaluate(model, testbed.tokenizer, requests, progress=False).summary()
    assert after["log_prob_new"].mean > before["log_prob_new"].mean + 2
    assert after["log_prob_old"].mean < before["log_prob_old"].mean - 2
    reloaded = PeftModel.from_pretrained(load_testbed().model, tmp_path)
    again = evaluate(reloaded, testbed.tokenizer, requests, progress=False).summary()
    assert again["log_prob_new"].mean == pytest.approx(after["log_prob_new"].mean, abs=1e-3)


def test_without_an_accelerator_nothing_has_to_be_said(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any
) -> None:
    """The trainer itself refuses bfloat16 on a CPU unless it is told to use it."""
    settings = AdapterSettings({"max_steps": 1, "learning_rate": 1e-3})
    session = lora_sft(settings).start(tiny_llama, tiny_tokenizer, seed=0)
    trained = session.train(session.filled([FRANCE]), tmp_path)
    assert next(trained.parameters()).device.type == ("cpu" if not torch.accelerator.is_available() else "cuda")
    session.close()


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


@pytest.mark.parametrize("spec", [lora_sft, corsa, f_learning])
def test_what_was_learned_is_reported_and_the_training_is_as_without(
    spec: MethodSpec,
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests, weights, drawn = [FRANCE, BORN], [], []
    for asked in (True, False):
        (folder := tmp_path / str(asked)).mkdir()
        session: Any = spec(SETTINGS).start(taught_llama, tiny_tokenizer, seed=0)
        if not asked:
            monkeypatch.setattr(session, "report", lambda requests, folder: None)
        for _ in range(2):
            session.update(requests, folder)
        drawn.append(torch.rand(3).tolist())
        weights.append({n: p.detach().clone() for n, p in session.model.named_parameters()})
        if asked:
            pairs = [(request.prompt, request.target_new) for request in requests]
            scores = score_targets(session.model, tiny_tokenizer, pairs)
            told = json.loads((folder / REPORT).read_text())
            assert [r["taken"] for r in told["requests"]] == [score.top1 for score in scores]
            assert [r["log_prob_new"] for r in told["requests"]] == pytest.approx(
                [score.log_prob for score in scores], abs=1e-4
            )
            assert all(r["log_prob_old"] is not None for r in told["requests"])
            assert told["effect"]["text"].startswith(f"{sum(score.top1 for score in scores)} of 2 facts learned")
        session.close()
    assert drawn[0] == drawn[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_adapter_of_facts_that_are_known_is_not_there(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    known = EditRequest(prompt=FRANCE.prompt, target_new="Paris")
    saved = save_update(
        lora_sft(SETTINGS), taught_llama, tiny_tokenizer, [known], tmp_path / "edited", changes=lora_sft.changes
    )
    assert (saved.model, saved.adapter) == (None, None)
    assert [path.name for path in (tmp_path / "edited").iterdir()] == [
        "manifest.json"
    ]  # what was asked for, and of whom


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


def test_an_update_that_keeps_reports_what_changed(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = AdapterSettings({**SETTINGS.training, "max_steps": 1, "keep_weight": 1.0, "learned_at": 0.5}, lora())
    session = lora_sft(settings).start(taught_llama, tiny_tokenizer, seed=0)
    session.update([FRANCE, BORN], tmp_path)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["kept"]["of"] > 1
    assert report["training"]["of"] == 2
