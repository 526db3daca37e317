"""A recipe carried out: its output is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mergekit.options import MergeOptions
from mergekit.scripts.run_yaml import main as mergekit_yaml

from corsa_plugins.manifest import checksums, read_manifest, write_manifest
from corsa_plugins.outputs import OutputError
from mergekit_ext import register
from mergekit_ext.merging import merge_recipe
from tests.conftest import byte_level_tokenizer
from tests.mergekit_ext.conftest import files
from tests.support.disk import no_file_larger_than
from tests.support.edited import changed, stored


class TestDamaged:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_damaged_tensor(self, refuse, workshop, base_model, two, value):
        damaged = changed(base_model, 1)
        with torch.no_grad():
            damaged.model.layers[1].mlp.up_proj.weight[3, 4] = value
        two["models"][0]["model"] = path = workshop.save("damaged", damaged)
        refuse(rf"model\.layers\.1\.mlp\.up_proj\.weight of {path} holds {value}", **two)

    def test_a_tensor_that_one_model_lacks(self, refuse, workshop, base_model, two):
        from safetensors.torch import save_file

        tensors = stored(workshop.folder / "edited")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, workshop.folder / "edited" / "model.safetensors", metadata={"format": "pt"})
        refuse(r"model\.layers\.0\.mlp\.up_proj\.weight.*edited", **two)


class TestOutput:
    def test_a_folder_with_something_in_it_is_refused(self, workshop, two):
        (workshop.folder / "full").mkdir()
        (workshop.folder / "full" / "notes.txt").write_text("mine")
        (workshop.folder / "file").write_text("mine")
        for name, message in (("full", "is not empty"), ("file", "is a file")):
            with pytest.raises(OutputError, match=message):
                merge_recipe(workshop.recipe(**two), workshop.folder / name)
        assert files(workshop.folder / "full") == ["notes.txt"]

    def test_an_empty_folder_is_taken(self, workshop, two):
        (workshop.folder / "out-1").mkdir()
        assert workshop.merge(**two)

    def test_a_link_to_a_folder_is_that_folder(self, workshop, two):
        (workshop.folder / "real").mkdir()
        (workshop.folder / "link").symlink_to("real")
        merge_recipe(workshop.recipe(**two), workshop.folder / "link", MergeOptions(quiet=True))
        assert stored(workshop.folder / "real").keys() == stored(workshop.folder / "base").keys()
        assert (workshop.folder / "link").is_symlink()

    def test_short_names_of_folders_are_not_looked_up_on_the_hub(self, workshop, two, monkeypatch):
        # mergekit's own card asks, when the merge is done, and without a network that would be the end of it
        monkeypatch.chdir(workshop.folder)
        (workshop.folder / "runs").mkdir()
        (workshop.folder / "edited").rename(workshop.folder / "runs" / "edited")
        workshop.merge(base_model="base", models=[{"model": "runs/edited"}])
        card = (workshop.merged.path / "README.md").read_text()
        assert "using base as a base" in card
        assert "* runs/edited\n" in card
        assert str(workshop.folder) not in card

    def test_a_card_that_cannot_be_had_costs_no_merge(self, workshop, two, monkeypatch, caplog):
        def unreachable(*_, **__):
            raise ConnectionError("the Hub cannot be reached")

        monkeypatch.setattr("mergekit_ext.card.generate_card", unreachable)
        assert workshop.merge(**two)
        assert "no model card is written: the Hub cannot be reached" in caplog.text
        assert "mergekit_config.yml" in files(workshop.merged.path)

    @pytest.mark.parametrize("options", [{}, {"safe_serialization": False}, {"async_write": True}])
    def test_when_the_weights_do_not_fit_nothing_is_left(self, refuse, two, options):
        with no_file_larger_than(60_000):
            refuse("refused cannot be written", options, **two)

    def test_when_the_tokenizer_does_not_fit_nothing_is_left(self, refuse, workshop, two):
        byte_level_tokenizer().save_pretrained(workshop.folder / "base")
        tokenizer = workshop.folder / "base" / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + " " * 500_000)
        with no_file_larger_than(400_000):
            refuse("the tokenizer could not be copied", **two)

    def test_the_space_is_looked_at_first(self, refuse, workshop, two):
        terabyte = 2**40
        header = json.dumps({"w": {"dtype": "F32", "shape": [terabyte], "data_offsets": [0, 4 * terabyte]}}).encode()
        with open(workshop.folder / "base" / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * terabyte)  # a file of holes
        refuse("refused needs 4398.0 GB", **two)

    def test_the_manifest_has_the_checksums_of_what_was_merged(self, workshop, base_model, two):
        peft = pytest.importorskip("peft")
        base, edited = two["base_model"], two["models"][0]["model"]
        sharded = workshop.save("sharded", changed(base_model, 2), max_shard_size="60KB")
        adapter = workshop.folder / "adapter"
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(base_model, config).save_pretrained(adapter)
        two["models"] += [{"model": sharded}, {"model": f"{base}+{adapter}"}]
        write_manifest(edited)
        workshop.merge(**two)
        inputs = read_manifest(workshop.merged.path).about["inputs"]
        assert set(inputs) == {base, edited, sharded, str(adapter)}
        for folder, digests in inputs.items():
            weights = [name for name in files(Path(folder)) if name.endswith(".safetensors")]
            assert {*weights, "adapter_config.json" if folder == str(adapter) else "config.json"} == set(digests)
            assert digests == checksums(folder, digests)
        assert len(inputs[sharded]) > 2

    def test_a_model_that_changed_on_disk_is_read_again(self, workshop, base_model, two):
        first = workshop.merge(**two)
        workshop.save("edited", changed(base_model, 2))
        second = workshop.merge(**two)
        assert any(not torch.equal(first[name], second[name]) for name in first)


def test_mergekit_yaml_itself_knows_the_method_once_it_is_registered(workshop, two):
    register()
    done = CliRunner().invoke(mergekit_yaml, [str(workshop.recipe(**two)), str(workshop.folder / "out")])
    assert done.exit_code == 0
    assert stored(workshop.folder / "out").keys() == stored(workshop.folder / "base").keys()
