"""A model comes from its folder as it was saved; what is not there is said by name."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from corsa_plugins.errors import SettingError
from corsa_plugins.manifest import write_manifest
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.loading import LoadingError, load_model, put_adapters
from corsa_plugins.model.stored import save_model
from tests.model.test_architecture import GROUPED, HIDDEN, INNER, LINEAR
from tests.support.flips import flipped_copies

EYES = {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": INNER}
SEEING = {
    "mistral3": lambda vocabulary: transformers.Mistral3Config(
        text_config=GROUPED | {"vocab_size": vocabulary, "head_dim": 8, "model_type": "mistral"},
        vision_config=EYES | {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 8},
        architectures=["Mistral3ForConditionalGeneration"],
    ),
    "qwen3_5": lambda vocabulary: transformers.Qwen3_5Config(
        text_config=GROUPED | LINEAR | {"vocab_size": vocabulary, "head_dim": 8},
        vision_config=EYES | {"depth": 3, "num_heads": 2, "out_hidden_size": HIDDEN},
        architectures=["Qwen3_5ForConditionalGeneration"],
    ),
}


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


@pytest.mark.parametrize("family", SEEING)
def test_a_model_that_sees_keeps_its_eyes(family, tiny_tokenizer, tmp_path):
    """Some of them transformers' class for text would load without, others not at all."""
    config = SEEING[family](len(tiny_tokenizer))
    model = getattr(transformers, config.architectures[0])(config)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model", device="cpu")
    assert type(loaded) is type(model)
    assert find_architecture(loaded).ffn(1).down.name.partition(".layers.")[0].endswith("language_model")
    save_model(loaded, tokenizer, tmp_path / "again")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"device": "gpu"}, SettingError, "device is 'gpu'"),
        ({"device": "cuda:99"}, SettingError, r"device is 'cuda:99', and this machine has \d+ CUDA devices"),
        ({"dtype": "int7"}, SettingError, "dtype is 'int7': choose one of auto, float32, bfloat16, float16"),
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
        # PEFT finds these names in others' keys too, as those of blocks and of B
        for names in (("0", "1"), ("A", "B"), ("q_proj", "layers")):
            numbered = put_adapters(both.unload(), dict(zip(names, (tmp_path / "a", tmp_path / "b"), strict=True)))
            numbered.set_adapter(names[1])
            assert torch.equal(numbered(ids).logits, answers["b"])
            both = numbered
        base = both.unload()
    with pytest.raises(LoadingError, match=r"adapter .*/model cannot be put on the base: .*an adapter of this model"):
        put_adapters(base, {"none": folder}, called="the base")


class TestDamaged:
    """Of files nobody vouched for: none has a manifest unless the test says so."""

    def refused(self, match, *where, **settings):
        with pytest.raises(LoadingError, match=match):
            load_model(*where, device="cpu", **settings)

    @pytest.mark.parametrize(
        "content", [b"", b"\x80\x04K\x01.", b"\xff" * 64, None], ids=["empty", "pickle", "ff", "cut"]
    )
    def test_weights_that_are_none(self, folder, content):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-9] if content is None else content)
        self.refused(r"model .*model cannot be loaded: .*model\.safetensors cannot be read: ", folder)

    @pytest.mark.parametrize(
        "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    )
    @pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 3}', "\x00"])
    def test_descriptions_that_are_none(self, folder, name, text):
        (folder / name).write_text(text)
        said = f"model {folder} cannot be loaded"  # where what is written there says nothing that is wrong, it loads
        try:
            load_model(folder, device="cpu")
        except LoadingError as error:
            said = str(error)
        assert said.startswith(f"model {folder} cannot be loaded")

    def test_pickled_weights_are_not_run(self, folder, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "was here"), "w"))

        (folder / "model.safetensors").unlink()
        torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
        self.refused(r"model .*model cannot be loaded: ", folder)
        assert not (tmp_path / "was here").exists()

    def test_a_tensor_that_is_not_there_is_not_made_up(self, folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        self.refused(r"1 of its tensors are missing \(model\.layers\.1\.mlp\.down_proj\.weight\)", folder)

    @pytest.mark.parametrize("count", [600, 10**6, 10**12])
    @pytest.mark.parametrize("is_ours", [False, True], ids=["of others", "with a manifest"])
    def test_more_layers_than_there_are_tensors_are_never_built(self, folder, count, is_ours, monkeypatch):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))
        if is_ours:
            write_manifest(folder)
        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)  # which would make a list of them
        self.refused(rf"model .*/config\.json says num_hidden_layers={count}, and its files have \d+ tensors", folder)

    def test_layers_of_a_part_are_counted_too(self, folder):
        config = json.loads((folder / "config.json").read_text()) | {"vision_config": {"depth": 10**9}}
        (folder / "config.json").write_text(json.dumps(config))
        self.refused(r"says depth=1000000000, and its files have", folder)

    def test_one_flipped_bit_of_what_we_wrote_is_noticed(self, tiny_llama, tiny_tokenizer, tmp_path):
        save_model(tiny_llama, tiny_tokenizer, tmp_path / "model")
        load_model(tmp_path / "model", device="cpu")
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            for flipped in flipped_copies(tmp_path / "model", name, 3):
                self.refused(f"model-flipped/{name} is not the file that was written", flipped)

    def test_an_adapter_is_whole_and_of_this_model_or_refused(self, folder, tiny_llama, tmp_path):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        peft.get_peft_model(tiny_llama, config).save_pretrained(tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        whole, names = file.read_bytes(), load_file(file)
        load_model(folder, tmp_path / "adapter", device="cpu")
        layer = "base_model.model.model.layers.1.self_attn.q_proj"
        for change, message in [
            ({f"{layer}.lora_B.weight": None}, r"adapter .* does not fit .*model: 1 tensors are not in its file"),
            ({f"{layer}.lora_A.weight": None, f"{layer}.lora_B.weight": None}, "2 tensors are not in its file"),
            ({"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)},
             "1 of its tensors have no place there"),
        ]:  # fmt: skip
            tensors = {name: tensor for name, tensor in {**names, **change}.items() if tensor is not None}
            save_file(tensors, file, metadata={"format": "pt"})
            self.refused(message, folder, tmp_path / "adapter")
        for content in (b"", whole[:-3], b"\xff" * 40):
            file.write_bytes(content)
            self.refused(r"adapter .*adapter_model\.safetensors cannot be read", folder, tmp_path / "adapter")
        file.write_bytes(whole)
        for text in ("", "[]", "{}", '{"peft_type": "LORA", "r": "many"}'):
            (tmp_path / "adapter" / "adapter_config.json").write_text(text)
            self.refused(r"adapter .*adapter cannot be put on", folder, tmp_path / "adapter")
