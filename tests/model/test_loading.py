"""A model comes from its folder as it was saved; what is not there is said by name."""

from __future__ import annotations

import pytest
import torch

from corsa_plugins.errors import SettingError
from corsa_plugins.model.loading import LoadingError, load_model, put_adapters


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama.half().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_as_it_was_saved_but_wide_enough_for_a_processor(folder, tiny_llama, tiny_tokenizer):
    model, tokenizer = load_model(folder, device="cpu")
    assert not any(module.training for module in model.modules())
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.float()), name
    assert load_model(folder, device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_model(folder, device="cpu", dtype="float16")[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"device": "gpu"}, SettingError, "device is 'gpu'"),
        ({"device": "cuda:99"}, SettingError, r"device is 'cuda:99', and this machine has \d+ CUDA devices"),
        ({"dtype": "int8"}, SettingError, "dtype is 'int8': choose one of auto, float32, bfloat16, float16"),
    ],
)
def test_no_such_device_or_precision(folder, settings, error, message):
    with pytest.raises(error, match=message):
        load_model(folder, **settings)


def test_a_folder_that_is_not_there_or_holds_no_model(folder, tmp_path):
    with pytest.raises(LoadingError, match=r"model .*/none: no such folder"):
        load_model(tmp_path / "none")
    with pytest.raises(LoadingError, match=r"no config\.json in this folder; did you mean .*/model"):
        load_model(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadingError, match="name the folder of a saved model"):
        load_model(tmp_path / "empty")
    pytest.importorskip("peft")
    with pytest.raises(LoadingError, match=r"adapter \./none: no such folder"):
        load_model(folder, "./none")


def test_adapters_are_put_on_side_by_side_and_none_trains(folder, tiny_llama, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_llama.float()
    ids = torch.tensor([[3, 4, 5]])
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config, adapter_name="a")
    adapted.add_adapter("b", config)
    answers = {}
    with torch.no_grad():
        for name in ("a", "b"):
            adapted.set_adapter(name)
            answers[name] = adapted(ids).logits
        adapted.save_pretrained(tmp_path, selected_adapters=["a", "b"])
        base = adapted.unload()
        both = put_adapters(base, {"first": tmp_path / "b", "second": tmp_path / "a"})
        assert both.active_adapters == ["first"]
        assert not any(parameter.requires_grad for parameter in both.parameters())
        assert torch.equal(both(ids).logits, answers["b"])
        both.set_adapter("second")
        assert torch.equal(both(ids).logits, answers["a"])
    with pytest.raises(LoadingError, match=r"adapter .*/model cannot be put on the base: .*an adapter of this model"):
        put_adapters(base, {"none": folder}, called="the base")
