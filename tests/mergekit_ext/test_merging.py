"""`corsa merge`: every flag of mergekit-yaml, errors that name the culprit, an output that is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.options import MergeOptions
from mergekit.scripts.run_yaml import main as mergekit_yaml

from corsa_plugins.cli.app import main
from corsa_plugins.errors import CorsaError
from corsa_plugins.outputs import OutputError, new_directory
from mergekit_ext.commands import merge_command
from mergekit_ext.merging import merge_recipe, read_recipe
from mergekit_ext.recipes import find_recipe, recipe_names
from tests.conftest import byte_level_tokenizer, llama
from tests.mergekit_ext.conftest import VOCABULARY
from tests.oracles import deltas as oracle
from tests.support.disk import no_file_larger_than
from tests.support.edited import changed, stored


@pytest.fixture
def two(workshop, base_model):
    """A base and an edited model on disk, and the settings of a recipe for them."""
    base, edited = workshop.save("base", base_model), workshop.save("edited", changed(base_model, 1))
    return {"base_model": base, "models": [{"model": edited}]}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def corsa(capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


class TestCommand:
    def test_it_merges(self, corsa, workshop, two):
        recipe = workshop.recipe(**two)
        code, out, _ = corsa("merge", recipe, workshop.folder / "merged", "--quiet", "--lazy-unpickle")
        assert code == 0
        assert out.startswith(f"merged into {workshop.folder / 'merged'}; tensors changed: 21, all others")
        assert (workshop.folder / "merged" / "mergekit_config.yml").read_text() == recipe.read_text()
        assert "# merged\n" in (workshop.folder / "merged" / "README.md").read_text()
        torch.testing.assert_close(stored(workshop.folder / "merged"), workshop.merge(**two), rtol=0, atol=0)

    def test_every_flag_of_mergekit_yaml_is_there(self):
        flags = {flag for parameter in mergekit_yaml.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        ours = {flag for parameter in merge_command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert flags - {"config_file", "out_path"} == ours - {"recipe", "out"}

    def test_help_has_examples_and_exit_codes(self, corsa):
        code, out, _ = corsa("merge", "--help")
        assert code == 0
        for expected in ("EXAMPLES", "EXIT CODES", "--low-cpu-memory", "--cuda", "scaled_pruned_delta"):
            assert expected in out

    def test_other_methods_work_too(self, workshop, two):
        two["models"][0]["parameters"] = {"weight": 0.5}
        assert workshop.merge(merge_method="task_arithmetic", **two).keys() == workshop.merge(**two).keys()

    @pytest.mark.parametrize("arguments", [["--no-such-flag"], []])
    def test_wrong_usage_is_exit_code_2(self, arguments, corsa):
        assert corsa("merge", "recipe.yaml", *arguments)[0] == 2


def refuse(workshop, match, options=None, **settings):
    """The recipe is refused with such a message, and nothing is left of the output."""
    before = files(workshop.folder)
    recipe = workshop.recipe(**settings)
    with pytest.raises(CorsaError, match=match):
        merge_recipe(recipe, workshop.folder / "refused", MergeOptions(quiet=True, **(options or {})))
    assert files(workshop.folder) == sorted([*before, recipe.name])


class TestBadSettings:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"density": 1.5}, "density is 1.5"),
            ({"density": [0.1, -0.2]}, "density is -0.2"),
            ({"density": [{"filter": "mlp", "value": float("nan")}, {"value": 0.2}]}, "density is nan"),
            ({"weight": float("nan")}, "weight is nan"),
            ({"weight": "much"}, "weight is 'much'"),
            ({"densty": 0.2}, "no parameter 'densty'; it has weight, density"),
        ],
    )
    def test_a_parameter_is_named_with_its_model(self, workshop, two, parameters, message):
        edited = two["models"][0]["model"]
        two["models"][0]["parameters"] = parameters
        refuse(workshop, f"models, {edited}: .*{message}", **two)
        del two["models"][0]["parameters"]
        refuse(workshop, f"parameters: .*{message}", **two, parameters=parameters)

    def test_in_slices_and_modules_too(self, workshop, two):
        base, edited = two["base_model"], two["models"][0]["model"]
        sources = [
            {"model": base, "layer_range": [0, 2]},
            {"model": edited, "layer_range": [0, 2], "parameters": {"density": 2}},
        ]
        refuse(workshop, rf"slices\[0\], {edited}: density is 2", base_model=base, slices=[{"sources": sources}])
        modules = {"default": {"slices": [{"sources": sources}]}}
        refuse(workshop, rf"modules.default.slices\[0\], {edited}: density is 2", base_model=base, modules=modules)

    def test_a_base_is_required(self, workshop, two):
        refuse(workshop, "needs a base", models=two["models"])
        refuse(workshop, "at least 1 non-base", **{**two, "models": [{"model": two["base_model"]}]})

    def test_what_is_no_recipe(self, workshop, two, tmp_path):
        refuse(workshop, "Exactly one of 'models', 'slices', or 'modules'", base_model=two["base_model"])
        refuse(workshop, "Unimplemented merge method scaled_delta", **two, merge_method="scaled_delta")
        for text, message in (("merge_method: [", "while parsing"), ("models: 3", "models"), ("", "the recipe")):
            (tmp_path / "bad.yaml").write_text(text)
            with pytest.raises(CorsaError, match=rf"bad\.yaml: (.|\n)*{message}"):
                read_recipe(tmp_path / "bad.yaml")
        with pytest.raises(CorsaError, match="did you mean 'two-editors'"):
            read_recipe("two-editor")

    def test_a_device_that_is_not_there(self, workshop, two):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        refuse(workshop, "device is 'cuda'", {"cuda": True}, **two)


class TestBadModels:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_damaged_tensor(self, workshop, base_model, two, value):
        damaged = changed(base_model, 1)
        with torch.no_grad():
            damaged.model.layers[1].mlp.up_proj.weight[3, 4] = value
        two["models"][0]["model"] = path = workshop.save("damaged", damaged)
        refuse(workshop, rf"model\.layers\.1\.mlp\.up_proj\.weight of {path} holds {value}", **two)

    def test_another_shape(self, workshop, two):
        model = llama(VOCABULARY)
        model.config.intermediate_size = 48
        path = workshop.save("wide", type(model)(model.config))
        two["models"][0]["model"] = path
        refuse(workshop, rf"mlp.* has shape \(.*48.*\) in {path} and \(.*64.*\) in {two['base_model']}", **two)

    def test_another_architecture(self, workshop, two):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        two["models"][0]["model"] = path = workshop.save("qwen", Qwen2ForCausalLM(config))
        refuse(workshop, f"{path} is a Qwen2ForCausalLM and {two['base_model']} a LlamaForCausalLM", **two)

    def test_another_vocabulary_size(self, workshop, two):
        two["models"][0]["model"] = path = workshop.save("larger", llama(VOCABULARY + 8))
        refuse(workshop, f"{path} has a vocabulary of 72 tokens and {two['base_model']} one of 64", **two)

    def test_a_larger_vocabulary_is_aligned_as_the_error_says(self, workshop):
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
        refuse(workshop, "align them with `tokenizer: {source: base}`", **settings)
        got = workshop.merge(**settings, tokenizer={"source": "base"})
        cut = {name: tensor[:n] if len(tensor) == n + 1 else tensor for name, tensor in edited.state_dict().items()}
        want = oracle.merge_checkpoints(stored(workshop.folder / "base"), [cut], lambda name: ([0.8], [0.2]))
        torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_a_vocabulary_of_other_tokens(self, workshop, two):
        tokenizer = byte_level_tokenizer()
        tokenizer.save_pretrained(workshop.folder / "base")
        tokenizer.save_pretrained(workshop.folder / "edited")
        saved = json.loads((workshop.folder / "edited" / "tokenizer.json").read_text())
        vocabulary = saved["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        (workshop.folder / "edited" / "tokenizer.json").write_text(json.dumps(saved))
        refuse(workshop, "have different vocabularies: token 'a'", **two)

    def test_a_missing_shard(self, workshop, base_model, two):
        path = workshop.save("sharded", changed(base_model, 1), max_shard_size="40KB")
        shard = sorted((workshop.folder / "sharded").glob("model-*.safetensors"))[1]
        shard.unlink()
        two["models"][0]["model"] = path
        refuse(workshop, rf"model {path}: shard {shard.name} is missing", **two)

    def test_a_shard_cut_short(self, workshop, two):
        file = workshop.folder / "edited" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        refuse(workshop, rf"{file} cannot be read", **two)

    def test_no_model_there(self, workshop, two):
        refuse(workshop, "no such folder: ./nowhere", **{**two, "models": [{"model": "./nowhere"}]})
        (workshop.folder / "empty").mkdir()
        empty = str(workshop.folder / "empty")
        refuse(workshop, "has no config.json", **{**two, "models": [{"model": empty}]})
        (workshop.folder / "empty" / "config.json").write_text("{}")
        refuse(workshop, "has no weights", **{**two, "models": [{"model": empty}]})

    def test_a_tensor_that_one_model_lacks(self, workshop, base_model, two):
        from safetensors.torch import save_file

        tensors = stored(workshop.folder / "edited")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, workshop.folder / "edited" / "model.safetensors", metadata={"format": "pt"})
        refuse(workshop, r"model\.layers\.0\.mlp\.up_proj\.weight.*edited", **two)


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

    @pytest.mark.parametrize("options", [{}, {"safe_serialization": False}, {"async_write": True}])
    def test_when_the_weights_do_not_fit_nothing_is_left(self, workshop, two, options):
        with no_file_larger_than(60_000):
            refuse(workshop, "refused cannot be written", options, **two)

    def test_when_the_tokenizer_does_not_fit_nothing_is_left(self, workshop, two):
        byte_level_tokenizer().save_pretrained(workshop.folder / "base")
        tokenizer = workshop.folder / "base" / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + " " * 500_000)
        with no_file_larger_than(400_000):
            refuse(workshop, "the tokenizer could not be copied", **two)

    def test_whatever_is_raised_nothing_is_left(self, tmp_path):
        def interrupted():
            with new_directory(tmp_path / "out") as partial:
                partial.mkdir()
                (partial / "half").write_text("of it")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert files(tmp_path) == []

    def test_the_space_is_looked_at_first(self, workshop, two):
        terabyte = 2**40
        header = json.dumps({"w": {"dtype": "F32", "shape": [terabyte], "data_offsets": [0, 4 * terabyte]}}).encode()
        with open(workshop.folder / "base" / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * terabyte)  # a file of holes
        refuse(workshop, "refused needs 4398.0 GB", **two)

    def test_a_model_that_changed_on_disk_is_read_again(self, workshop, base_model, two):
        first = workshop.merge(**two)
        workshop.save("edited", changed(base_model, 2))
        second = workshop.merge(**two)
        assert any(not torch.equal(first[name], second[name]) for name in first)


EXAMPLES = Path(__file__).parents[2] / "examples" / "mergekit"


class TestRecipes:
    @pytest.mark.parametrize("name", [*recipe_names(), *sorted(map(str, EXAMPLES.glob("*.yaml")))])
    def test_recipes_are_of_our_method_and_in_range(self, name):
        from mergekit_ext.checks import _check_settings

        config, text = read_recipe(name)
        assert config.merge_method == "scaled_pruned_delta"
        assert config.base_model is not None
        _check_settings(config)
        assert text.startswith("#")

    @pytest.mark.parametrize("name", recipe_names())
    def test_packaged_recipes_merge_when_the_models_are_there(self, workshop, base_model, name):
        import peft

        models = {name: changed(base_model, seed) for seed, name in enumerate(("base", "one", "two"))}
        folders = {name: workshop.save(name, model) for name, model in models.items()}
        peft.get_peft_model(base_model, peft.LoraConfig(target_modules="all-linear")).save_pretrained(
            workshop.folder / "adapter"
        )
        text = find_recipe(name).read_text()
        for theirs, ours in (("Qwen/Qwen2.5-7B-Instruct", folders["base"]), ("./qwen2.5-7b-rsft", folders["one"]),
                             ("./edited-facts", folders["one"]), ("./edited-code", folders["two"]),
                             ("./adapter", str(workshop.folder / "adapter"))):  # fmt: skip
            text = text.replace(theirs, ours)
        assert workshop.merge(**yaml.safe_load(text)).keys() == stored(folders["base"]).keys()

    def test_the_papers_settings(self):
        (model,) = yaml.safe_load(find_recipe("rsft-qwen2.5-7b").read_text())["models"]
        assert model["parameters"] == {"weight": 0.8, "density": 0.2}


def test_mergekit_yaml_itself_knows_the_method_once_we_are_imported(workshop, two):
    done = CliRunner().invoke(mergekit_yaml, [str(workshop.recipe(**two)), str(workshop.folder / "out")])
    assert done.exit_code == 0
    assert stored(workshop.folder / "out").keys() == stored(workshop.folder / "base").keys()
