"""`scaled_pruned_delta` through mergekit itself, on models saved to disk, against the oracle."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import peft
import pytest
import torch
from mergekit.merge_methods.base import TensorGroup
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mergekit_ext import METHOD, register
from mergekit_ext.merge_method import scaled_pruned_delta
from tests.mergekit_ext.conftest import VOCABULARY
from tests.oracles import deltas as oracle
from tests.support.edited import changed, stored


def assert_equal(got, want, exact=True):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        if exact:
            assert torch.equal(got[name], tensor), name
        else:
            torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-7)


def paths(workshop, base, *edited, **options):
    names = [workshop.save("base", base, **options)]
    return names + [workshop.save(f"edited-{i}", model, **options) for i, model in enumerate(edited)]


def constant(weights, densities):
    return lambda name: (weights, densities)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_is_merged_as_the_equation_says(workshop, base_model, dtype):
    base_model.to(dtype)
    base, edited = paths(workshop, base_model, changed(base_model, 1))
    got = workshop.merge(base_model=base, models=[{"model": edited}])
    assert_equal(got, oracle.merge_checkpoints(stored(base), [stored(edited)], constant([0.8], [0.2])))


def test_the_merged_model_loads_and_runs(workshop, base_model):
    base, edited = paths(workshop, base_model, changed(base_model, 1))
    workshop.merge(base_model=base, models=[{"model": edited}])
    model = AutoModelForCausalLM.from_pretrained(workshop.folder / "out-1")
    assert model(torch.arange(6)[None]).logits.isfinite().all()


def test_several_edited_models_add_their_deltas(workshop, base_model):
    base, one, two = paths(workshop, base_model, changed(base_model, 1, "mlp"), changed(base_model, 2))
    models = [
        {"model": one, "parameters": {"weight": 0.5, "density": 0.3}},
        {"model": two, "parameters": {"weight": -0.25, "density": 1.0}},
    ]
    got = workshop.merge(base_model=base, models=models)
    want = oracle.merge_checkpoints(stored(base), [stored(one), stored(two)], constant([0.5, -0.25], [0.3, 1.0]))
    assert_equal(got, want, exact=False)


def test_what_no_model_changed_is_passed_on_bit_for_bit(workshop, base_model):
    with torch.no_grad():
        # values that arithmetic would not leave as they are
        base_model.model.norm.weight[:3] = torch.tensor([-0.0, torch.inf, torch.nan])
    base, edited = paths(workshop, base_model, changed(base_model, 1, "layers.1.mlp"))
    got, before = workshop.merge(base_model=base, models=[{"model": edited}]), stored(base)
    for name in before:
        same = torch.equal(got[name].view(torch.int32), before[name].view(torch.int32))
        assert same != ("layers.1.mlp" in name), name
    assert sorted(workshop.merged.changed) == sorted(name for name in before if "layers.1.mlp" in name)


def test_what_changed_comes_from_the_merge_and_from_no_log(workshop, base_model):
    base, edited, same = paths(workshop, base_model, changed(base_model, 1, "layers.1.mlp"), base_model)
    logging.disable(logging.CRITICAL)
    try:
        for options in ({}, {"low_cpu_memory": True}):
            workshop.merge(options, base_model=base, models=[{"model": edited}])
            assert sorted(workshop.merged.changed) == sorted(name for name in stored(base) if "layers.1.mlp" in name)
            workshop.merge(options, base_model=base, models=[{"model": same}])
            assert workshop.merged.changed == ()
    finally:
        logging.disable(logging.NOTSET)
    workshop.merge(
        base_model=base, models=[{"model": edited}], merge_method="task_arithmetic", parameters={"weight": 1}
    )
    assert workshop.merged.changed is None


def test_only_a_merge_within_the_block_is_told_of():
    group = TensorGroup.from_tensors([torch.zeros(4), torch.ones(4)], ids=["base", "edited"], base_index=0, name="w")
    with scaled_pruned_delta.told_tensors() as outer:
        scaled_pruned_delta([group], parameters={"weight": 0.5, "density": 1.0})
        with scaled_pruned_delta.told_tensors() as inner:
            scaled_pruned_delta([group], parameters={"weight": 0.0})
            scaled_pruned_delta([group], parameters={"weight": 1.0})
    scaled_pruned_delta([group])
    assert (outer.changed, inner.changed) == (["w", "w"], ["w"])
    assert (outer.lost, inner.lost) == (["w"], ["w"])


class TestIdentities:
    def test_density_1_and_weight_1_give_the_edited_model(self, workshop, base_model):
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        got = workshop.merge(base_model=base, models=[{"model": edited}], parameters={"weight": 1, "density": 1})
        assert_equal(got, stored(edited))

    @pytest.mark.parametrize("off", ["weight", "density"])
    def test_weight_0_and_density_0_give_the_base(self, workshop, base_model, off):
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        assert_equal(workshop.merge(base_model=base, models=[{"model": edited}], parameters={off: 0}), stored(base))

    @pytest.mark.parametrize("off", ["weight", "density"])
    def test_a_merge_that_keeps_nothing_is_said_to_be_the_base(self, workshop, base_model, caplog, off):
        base, edited = paths(workshop, base_model, changed(base_model, 1, "mlp"))
        workshop.merge(base_model=base, models=[{"model": edited}], parameters={off: 0})
        differing = {name for name, tensor in stored(edited).items() if not torch.equal(tensor, stored(base)[name])}
        assert (workshop.merged.changed, set(workshop.merged.lost)) == ((), differing)
        text = f"is the base, bit for bit: an edited model differs from it in {len(differing)} tensors"
        assert differing
        assert text in caplog.text

    def test_tensors_of_whose_change_nothing_is_left_are_named(self, workshop, base_model, caplog):
        """A filter keeps nothing of some; of others the change is rounded away."""
        base_model.to(torch.bfloat16)
        edited = changed(base_model, 1)
        base, path = paths(workshop, base_model, edited)
        density = [{"filter": "mlp", "value": 0}, {"value": 1.0}]
        weight = [{"filter": "self_attn", "value": 1e-9}, {"value": 1.0}]
        got = workshop.merge(
            base_model=base, models=[{"model": path, "parameters": {"density": density, "weight": weight}}]
        )
        changes = {name for name, tensor in got.items() if not torch.equal(tensor, stored(base)[name])}
        differing = {name for name, tensor in stored(path).items() if not torch.equal(tensor, stored(base)[name])}
        assert set(workshop.merged.changed) == changes
        assert set(workshop.merged.lost) == differing - changes
        kinds = {kind for kind in ("mlp", "self_attn") if any(kind in name for name in workshop.merged.lost)}
        assert kinds == {"mlp", "self_attn"}
        lost, all_of_them = len(workshop.merged.lost), len(differing)
        assert f"nothing is left of the change in {lost} of {all_of_them} tensors" in caplog.text

    def test_a_model_merged_with_itself_is_itself_and_that_is_said(self, workshop, base_model, caplog):
        base, edited = paths(workshop, base_model, base_model)
        assert_equal(workshop.merge(base_model=base, models=[{"model": edited}]), stored(base))
        assert workshop.merged.changed == ()
        assert "is the base: no edited model differs" in caplog.text


class TestRecipes:
    def test_filters(self, workshop, base_model):
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        density = [{"filter": "mlp", "value": 0.5}, {"filter": "self_attn", "value": 0}, {"value": 1.0}]
        got = workshop.merge(base_model=base, models=[{"model": edited, "parameters": {"density": density}}])
        want = oracle.merge_checkpoints(
            stored(base),
            [stored(edited)],
            lambda name: ([0.8], [0.5 if "mlp" in name else 0 if "self_attn" in name else 1.0]),
        )
        assert_equal(got, want)

    def test_gradients_over_layers(self, workshop, base_model):
        base, edited = paths(workshop, base_model, changed(base_model, 1, "layers"))
        got = workshop.merge(base_model=base, models=[{"model": edited}], parameters={"weight": [0.2, 0.9]})
        settings = lambda name: ([0.2 if "layers.0" in name else 0.9], [0.2])  # noqa: E731
        assert_equal(got, oracle.merge_checkpoints(stored(base), [stored(edited)], settings))

    def test_slices_rearrange_the_layers(self, workshop, base_model):
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        slices = [
            {"sources": [{"model": name, "layer_range": [layer, layer + 1]} for name in (base, edited)]}
            for layer in (1, 0, 1)
        ]
        got = workshop.merge(base_model=base, slices=slices)
        merged = oracle.merge_checkpoints(stored(base), [stored(edited)], constant([0.8], [0.2]))
        want = {name: tensor for name, tensor in merged.items() if "layers" not in name}
        for place, layer in enumerate((1, 0, 1)):
            prefix = f"model.layers.{layer}."
            want |= {n.replace(prefix, f"model.layers.{place}."): t for n, t in merged.items() if n.startswith(prefix)}
        assert_equal(got, want)

    def test_per_row_and_whole_vectors(self, workshop, base_model):
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        got = workshop.merge(
            base_model=base, models=[{"model": edited}], parameters={"per_row": True, "prune_vectors": False}
        )
        for name, tensor in stored(base).items():
            values = oracle.merge(tensor, [stored(edited)[name]], [0.8], [0.2], per_row=True, prune_vectors=False)
            assert torch.equal(got[name], oracle.rounded(values, tensor.dtype)), name

    def test_dtype_and_out_dtype(self, workshop, base_model):
        base_model.to(torch.bfloat16)
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        got = workshop.merge(base_model=base, models=[{"model": edited}], dtype="float32", out_dtype="float16")
        widened = [{n: t.float() for n, t in stored(path).items()} for path in (base, edited)]
        want = oracle.merge_checkpoints(widened[0], widened[1:], constant([0.8], [0.2]))
        assert_equal(got, {name: tensor.half() for name, tensor in want.items()})


class TestFiles:
    def test_sharded_safetensors_in_and_out(self, workshop, base_model):
        base, edited = paths(workshop, base_model, changed(base_model, 1), max_shard_size="40KB")
        assert (workshop.folder / "base" / "model.safetensors.index.json").exists()
        got = workshop.merge({"out_shard_size": 10_000}, base_model=base, models=[{"model": edited}])
        assert (workshop.folder / "out-1" / "model.safetensors.index.json").exists()
        assert_equal(got, oracle.merge_checkpoints(stored(base), [stored(edited)], constant([0.8], [0.2])))

    @pytest.mark.parametrize("options", [{"lazy_unpickle": True}, {}])
    def test_pickled_weights(self, workshop, base_model, options):
        names = []
        for name, model in (("base", base_model), ("edited", changed(base_model, 1))):
            names.append(workshop.save(name, model))
            (workshop.folder / name / "model.safetensors").unlink()
            torch.save(model.state_dict(), workshop.folder / name / "pytorch_model.bin")
        got = workshop.merge(options, base_model=names[0], models=[{"model": names[1]}])
        want = oracle.merge_checkpoints(stored(names[0]), [stored(names[1])], constant([0.8], [0.2]))
        assert_equal(got, want)

    @pytest.mark.parametrize(
        "options",
        [
            {"low_cpu_memory": True},
            {"clone_tensors": True, "safe_serialization": False},
            {"async_write": True, "write_threads": 2},
            pytest.param({"cuda": True}, marks=pytest.mark.gpu),
            pytest.param({"cuda": True, "low_cpu_memory": True, "read_to_gpu": True}, marks=pytest.mark.gpu),
        ],
        ids=lambda options: "+".join(options),
    )
    def test_mergekits_options_change_nothing(self, workshop, base_model, options):
        if options.get("cuda") and not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        base, edited = paths(workshop, base_model, changed(base_model, 1))
        got = workshop.merge(options, base_model=base, models=[{"model": edited}])
        assert_equal(got, oracle.merge_checkpoints(stored(base), [stored(edited)], constant([0.8], [0.2])))

    def test_tied_embeddings(self, workshop):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        base, edited = paths(workshop, model, changed(model, 1))
        assert "lm_head.weight" not in stored(base)
        got = workshop.merge(base_model=base, models=[{"model": edited}])
        want = oracle.merge_checkpoints(stored(base), [stored(edited)], constant([0.8], [0.2]))
        assert_equal({name: got[name] for name in want}, want)
        loaded = AutoModelForCausalLM.from_pretrained(workshop.folder / "out-1")
        assert torch.equal(loaded.lm_head.weight, want["model.embed_tokens.weight"])

    def test_a_lora_adapter_into_its_base(self, workshop, base_model):
        base = workshop.save("base", base_model)
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, target_modules=["down_proj", "up_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(copy.deepcopy(base_model), config)
        adapted.save_pretrained(workshop.folder / "adapter")
        got = workshop.merge(base_model=base, models=[{"model": f"{base}+{workshop.folder / 'adapter'}"}])
        merged = adapted.merge_and_unload().state_dict()
        before = stored(base)
        want = oracle.merge_checkpoints(before, [{n: merged[n] for n in before}], constant([0.8], [0.2]))
        assert_equal(got, want)
        touched = {name for name in before if not torch.equal(got[name], before[name])}
        assert touched == {name for name in before if "down_proj" in name or "up_proj" in name}
        assert not list(workshop.folder.glob(".out-1*")), "the merged adapter was left behind"


KNOWN = f"from mergekit.merge_methods import get; print(get({METHOD!r}).spec.name)"


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestRegistration:
    def test_registering_twice_is_fine(self):
        from mergekit import merge_methods

        register()
        register()
        assert merge_methods.get(METHOD).spec.name == METHOD

    def test_the_parameters_are_typed_and_have_the_papers_values(self):
        from mergekit import merge_methods

        spec = merge_methods.get(METHOD).spec
        defaults = {parameter.name: (parameter.default, parameter.scope.value) for parameter in spec.parameters}
        assert defaults["weight"] == (0.8, "non_base")
        assert defaults["density"] == (0.2, "non_base")
        for value in (-0.1, 1.1, float("nan"), "much"):
            with pytest.raises(ValueError, match=r"density is|valid number"):
                next(p for p in spec.parameters if p.name == "density").validate(value)

    def test_it_is_known_once_it_is_registered(self):
        absent = "import sys\nfor name in ('trl', 'easyeditor', 'trl_ext', 'easyedit_ext'): sys.modules[name] = None"
        assert python(f"{absent}\nimport mergekit_ext\nmergekit_ext.register()\n{KNOWN}") == METHOD

    def test_importing_alone_changes_nothing_in_mergekit_or_in_how_python_imports(self):
        code = (
            "import pkgutil, sys, mergekit_ext\n"
            "for module in pkgutil.iter_modules(mergekit_ext.__path__): __import__(f'mergekit_ext.{module.name}')\n"
            f"ours = [f for f in sys.meta_path if type(f).__module__.startswith('mergekit_ext')]\nprint(ours)\n"
            f"try:\n  {KNOWN}\nexcept RuntimeError as error: print(error)\n"
            f"mergekit_ext.register()\n{KNOWN}"
        )
        assert python(code).splitlines() == ["[]", f"Unimplemented merge method {METHOD}", METHOD]

    def test_without_mergekit_it_is_one_line_that_names_the_extra(self):
        code = "import sys; sys.modules['mergekit'] = None\ntry:\n  import mergekit_ext\n"
        message = python(code + "except ImportError as error: print(error)")
        assert message == "mergekit_ext needs mergekit: pip install 'corsa-plugins[mergekit]'"

    def test_importing_it_does_not_import_mergekit(self):
        heavy = "'mergekit.merge_methods' in sys.modules, 'torch' in sys.modules"
        assert python(f"import sys, mergekit_ext.cli; print({heavy})") == "False False"
