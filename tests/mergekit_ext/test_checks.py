"""A recipe that would fail, or go wrong unseen, is refused before a tensor is read; the message names the culprit."""

from __future__ import annotations

import json

import pytest
import torch

from corsa_plugins.errors import CorsaError
from mergekit_ext.merging import read_recipe
from tests.conftest import byte_level_tokenizer, llama
from tests.mergekit_ext.conftest import VOCABULARY
from tests.oracles import deltas as oracle
from tests.support.edited import changed, stored


class TestBadSettings:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"density": 1.5}, "density is 1.5"),
            ({"density": [0.1, -0.2]}, "density is -0.2"),
            ({"density": [{"filter": "mlp", "value": float("nan")}, {"value": 0.2}]}, "density is nan"),
            ({"weight": float("nan")}, "weight is nan"),
            ({"weight": "much"}, "weight is 'much'"),
            ({"density": []}, "density is an empty list"),
            ({"density": [{"filter": "mlp", "value": []}, {"value": 0.2}]}, "density is an empty list"),
            ({"densty": 0.2}, "no parameter 'densty'; it has weight, density"),
        ],
    )
    def test_a_parameter_is_named_with_its_model(self, refuse, two, parameters, message):
        edited = two["models"][0]["model"]
        two["models"][0]["parameters"] = parameters
        refuse(f"models, {edited}: .*{message}", **two)
        del two["models"][0]["parameters"]
        refuse(f"parameters: .*{message}", **two, parameters=parameters)

    def test_a_name_that_nobody_would_read(self, refuse, two):
        refuse(r"yaml, models\[0\]: weight belongs under `parameters:`", **{
            **two, "models": [{**two["models"][0], "weight": 0.5}]
        })  # fmt: skip
        refuse(r"yaml: density belongs under `parameters:`", **two, density=0.1)
        refuse(r"yaml: dtyp is not known here: did you mean dtype", **two, dtyp="x")
        setting = [{"filtre": "mlp", "value": 0.1}, {"value": 0.2}]
        refuse(r"parameters, density\[0\]: filtre is not known here: did you mean filter", **two,
               parameters={"density": setting})  # fmt: skip
        refuse("Unimplemented merge method", **{**two, "density": 0.1, "merge_method": "other"})  # mergekit's to say

    def test_in_slices_and_modules_too(self, refuse, two):
        base, edited = two["base_model"], two["models"][0]["model"]
        sources = [
            {"model": base, "layer_range": [0, 2]},
            {"model": edited, "layer_range": [0, 2], "parameters": {"density": 2}},
        ]
        refuse(rf"slices\[0\], {edited}: density is 2", base_model=base, slices=[{"sources": sources}])
        modules = {"default": {"slices": [{"sources": sources}]}}
        refuse(rf"modules.default.slices\[0\], {edited}: density is 2", base_model=base, modules=modules)

    def test_a_base_is_required(self, refuse, two):
        refuse("needs a base", models=two["models"])
        refuse("at least 1 non-base", **{**two, "models": [{"model": two["base_model"]}]})

    def test_a_gguf_file_is_to_be_written_out_first(self, refuse, two, tmp_path):
        (tmp_path / "base.gguf").write_bytes(b"GGUF")
        refuse(r"base\.gguf is a GGUF file, which mergekit", **{**two, "base_model": str(tmp_path / "base.gguf")})

    def test_what_is_no_recipe(self, refuse, two, tmp_path):
        refuse("Exactly one of 'models', 'slices', or 'modules'", base_model=two["base_model"])
        refuse("Unimplemented merge method scaled_delta", **two, merge_method="scaled_delta")
        for text, message in (("merge_method: [", "while parsing"), ("models: 3", "models"), ("", "the recipe")):
            (tmp_path / "bad.yaml").write_text(text)
            with pytest.raises(CorsaError, match=rf"bad\.yaml: (.|\n)*{message}"):
                read_recipe(tmp_path / "bad.yaml")
        with pytest.raises(CorsaError, match="did you mean 'two-editors'"):
            read_recipe("two-editor")

    def test_a_device_that_is_not_there(self, refuse, two):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        refuse("device is 'cuda'", {"cuda": True}, **two)
        refuse("multi_gpu: this machine has no CUDA", {"multi_gpu": True}, **two)


class TestBadModels:
    def test_another_shape(self, refuse, workshop, two):
        model = llama(VOCABULARY)
        model.config.intermediate_size = 48
        path = workshop.save("wide", type(model)(model.config))
        two["models"][0]["model"] = path
        refuse(rf"mlp.* has shape \(.*48.*\) in {path} and \(.*64.*\) in {two['base_model']}", **two)

    def test_another_architecture(self, refuse, workshop, two):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        two["models"][0]["model"] = path = workshop.save("qwen", Qwen2ForCausalLM(config))
        refuse(f"{path} is a Qwen2ForCausalLM and {two['base_model']} a LlamaForCausalLM", **two)

    def test_another_vocabulary_size(self, refuse, workshop, two):
        two["models"][0]["model"] = path = workshop.save("larger", llama(VOCABULARY + 8))
        refuse(f"{path} has a vocabulary of 72 tokens and {two['base_model']} one of 64", **two)

    def test_a_larger_vocabulary_is_aligned_as_the_error_says(self, refuse, workshop):
        tokenizer = byte_level_tokenizer()
        n = len(tokenizer)
        base = llama(n)
        edited = changed(base, 1)
        edited.resize_token_embeddings(n + 1, mean_resizing=False)
        for name, model in (("base", base), ("edited", edited)):
            workshop.save(name, model)
            tokenizer.save_pretrained(workshop.folder / name)
            tokenizer.add_tokens(["<extra>"])
        settings = {
            "base_model": str(workshop.folder / "base"),
            "models": [{"model": str(workshop.folder / "edited")}],
        }
        refuse("align them with `tokenizer: {source: base}`", **settings)
        got = workshop.merge(**settings, tokenizer={"source": "base"})
        cut = {name: tensor[:n] if len(tensor) == n + 1 else tensor for name, tensor in edited.state_dict().items()}
        want = oracle.merge_checkpoints(stored(workshop.folder / "base"), [cut], lambda name: ([0.8], [0.2]))
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_a_vocabulary_of_other_tokens(self, refuse, workshop, two):
        tokenizer = byte_level_tokenizer()
        tokenizer.save_pretrained(workshop.folder / "base")
        tokenizer.save_pretrained(workshop.folder / "edited")
        saved = json.loads((workshop.folder / "edited" / "tokenizer.json").read_text())
        vocabulary = saved["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        (workshop.folder / "edited" / "tokenizer.json").write_text(json.dumps(saved))
        refuse("have different vocabularies: token 'a'", **two)
