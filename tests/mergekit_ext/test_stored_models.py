"""Models on disk that are not complete."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.edited import changed
from tests.support.flips import flipped_copies


class TestIncomplete:
    def test_a_missing_shard(self, refuse, workshop, base_model, two):
        path = workshop.save("sharded", changed(base_model, 1), max_shard_size="40KB")
        shard = sorted((workshop.folder / "sharded").glob("model-*.safetensors"))[1]
        shard.unlink()
        two["models"][0]["model"] = path
        refuse(rf"model {path}: shard {shard.name} is missing", **two)

    def test_a_shard_cut_short(self, refuse, workshop, two):
        file = workshop.folder / "edited" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        refuse(rf"{file} cannot be read", **two)

    def test_pickled_weights_cut_short(self, refuse, workshop, two):
        folder = workshop.folder / "edited"
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        content = (folder / "pytorch_model.bin").read_bytes()
        for text in (content[:-500], b""):
            (folder / "pytorch_model.bin").write_bytes(text)
            refuse(r"edited/pytorch_model\.bin is no file of torch, or cut short", **two)
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
        refuse(r"^(?!.*refused cannot be written)", **two)  # the output is not to blame

    def test_an_adapter_without_some_tensors_or_cut_short(self, refuse, workshop, base_model, two):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(base_model, config).save_pretrained(workshop.folder / "adapter")
        file = workshop.folder / "adapter" / "adapter_model.safetensors"
        tensors = load_file(file)
        two["models"][0]["model"] = f"{two['base_model']}+{file.parent}"
        save_file({name: tensor for name, tensor in tensors.items() if "lora_B" not in name}, file)
        refuse("Found missing adapter keys", **two)
        file.write_bytes(file.read_bytes()[:-1])
        refuse(rf"adapter {file.parent} cannot be loaded: {file} cannot be read: 1 bytes are missing", **two)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ({"weight_map": {"a": "../base/model.safetensors"}}, r"names \.\./base/model\.safetensors, which is not"),
            ({"weight_map": {"a": "/etc/passwd"}}, "names /etc/passwd, which is not in"),
            ({"weight_map": {"a": 1, "b": "x"}}, "is not an index of shards"),
            ([], "is not an index of shards"),
        ],
    )
    def test_an_index_that_leads_elsewhere_or_nowhere(self, refuse, workshop, two, index, message):
        (workshop.folder / "edited" / "model.safetensors.index.json").write_text(json.dumps(index))
        refuse(message, **two)

    def test_no_model_there(self, refuse, workshop, two):
        refuse("no such folder: ./nowhere", **{**two, "models": [{"model": "./nowhere"}]})
        (workshop.folder / "empty").mkdir()
        empty = str(workshop.folder / "empty")
        refuse("has no config.json", **{**two, "models": [{"model": empty}]})
        (workshop.folder / "empty" / "config.json").write_text("{}")
        refuse("has no weights", **{**two, "models": [{"model": empty}]})


def test_one_flipped_bit_of_a_merged_model_is_noticed(refuse, workshop, two):
    workshop.merge(**two)
    for name in ("model.safetensors", "config.json"):
        for flipped in flipped_copies(workshop.merged.path, name, 2):
            two["models"][0]["model"] = str(flipped)
            refuse(f"{name} is not the file that was written", **two)
