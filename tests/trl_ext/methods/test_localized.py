"""Adapters that read at their requests' subjects alone, trained and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.adapters import early_layers, read_directions
from corsa_plugins.data.requests import RequestError
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.spec import MethodSpec
from corsa_plugins.model.asking import score_targets
from tests.support.small_plans import BORN, FRANCE, ITALY
from tests.trl_ext.conftest import lora
from tests.trl_ext.methods.conftest import SETTINGS, facts_of, is_as
from trl_ext.methods import AdapterSettings, corsa, f_learning, lora_sft
from trl_ext.methods.adapter import lora_factors

LOCAL = AdapterSettings(
    {**SETTINGS.training, "learning_rate": 0.1, "num_train_epochs": 12, "keep_weight": 1.0, "keep_batch_size": 2},
    localized=True,
    history_looks=0,
)


@pytest.mark.parametrize("spec", [lora_sft, corsa, f_learning])
def test_two_updates_of_one_adapter(
    spec: MethodSpec, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """It learns, reads where it is told to, grows with what it is told, and is plain LoRA to anyone else."""
    before, asked = facts_of(taught_llama), [(r.prompt, r.target_new) for r in (FRANCE, BORN)]
    reads = read_directions(taught_llama, tiny_tokenizer, [FRANCE], early_layers(taught_llama))
    then = [score.log_prob for score in score_targets(taught_llama, tiny_tokenizer, asked)]
    session = spec(LOCAL).start(taught_llama, tiny_tokenizer, seed=0)
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    session.update([FRANCE], folders[0])
    first = lora_factors(session.model)
    assert {name.removeprefix("base_model.model.") for name in first} == set(reads)
    for b, a in first.values():
        assert a.shape[0] == 1
        assert b.abs().max() > 0
    session.update([BORN, ITALY], folders[1])
    second = lora_factors(session.model)
    for name, (b, a) in second.items():
        assert b.shape[1] == a.shape[0] == 3
        assert torch.equal(a[:1], first[name][1]), "what is read is not trained"
    now = [score.log_prob for score in score_targets(session.model, tiny_tokenizer, asked)]
    assert now[0] > then[0] + 0.5
    assert now[1] > then[1] + 0.5
    loaded = PeftModel.from_pretrained(_copy(session), str(folders[1] / "adapter")).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, session.model.eval()(ids).logits)
    session.restore(folders[0])
    assert all(torch.equal(a, lora_factors(session.model)[name][1]) for name, (_, a) in first.items())
    session.close()
    assert is_as(taught_llama, before)


def _copy(session: object) -> LlamaForCausalLM:
    """The session's base, with what F-Learning took from it, without an adapter."""
    base = session.peft.get_base_model()  # type: ignore[attr-defined]
    state = {k.replace(".base_layer", ""): v.clone() for k, v in base.state_dict().items() if "lora_" not in k}
    copy = LlamaForCausalLM(base.config)
    copy.load_state_dict(state)
    return copy.eval()


def test_what_cannot_be_is_refused(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="localized beside lora"):
        AdapterSettings(SETTINGS.training, lora(), localized=True)
    before = facts_of(taught_llama)
    session = lora_sft(LOCAL).start(taught_llama, tiny_tokenizer, seed=0)
    with pytest.raises(RequestError, match="subject"):
        session.update([FRANCE.model_copy(update={"subject": None})], tmp_path)
    session.close()
    assert is_as(taught_llama, before)
