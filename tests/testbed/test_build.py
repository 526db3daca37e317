"""A testbed must know its world, in the shipped size and in one built from nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corsa_plugins.model.tokenization import join
from corsa_plugins.testbed import Testbed, TestbedRecipe, World, load_testbed
from corsa_plugins.testbed.checks import greedy_matches, knowledge, value_reach
from corsa_plugins.testbed.manifest import check_manifest


def test_a_reduced_testbed_built_from_nothing_knows_its_world(reduced: Testbed) -> None:
    shares = knowledge(reduced)
    assert set(shares) == {"statement", "question_1", "question_2", "question_3", "validation_1", "validation_2"}
    assert min(shares.values()) >= 0.95, shares


def test_the_shipped_testbed_knows_every_form_of_its_world(shipped: Testbed) -> None:
    shares = knowledge(shipped)
    assert len(shares) == 6
    assert min(shares.values()) >= 0.99, shares


def test_value_vectors_reach_the_targets_of_the_shipped_testbed(shipped: Testbed) -> None:
    reach = value_reach(shipped, n=50, seed=5)
    assert reach.reached >= 0.9, reach
    assert reach.question_answers >= 0.5, reach


def test_value_search_leaves_the_model_as_it_was(reduced: Testbed) -> None:
    before = {name: p.clone() for name, p in reduced.model.named_parameters()}
    value_reach(reduced, n=5, steps=2)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in reduced.model.named_parameters())
    assert not reduced.model.model.layers[0].mlp.down_proj._forward_hooks


def test_shipped_files_are_the_default_recipes_and_small(shipped: Testbed) -> None:
    check_manifest(shipped.path, TestbedRecipe().key())
    assert shipped.recipe == TestbedRecipe()
    assert shipped.world == World.build(shipped.recipe.world)
    assert sum(path.stat().st_size for path in shipped.path.iterdir()) <= 8 * 2**20


def test_transformers_alone_loads_the_folder(reduced: Testbed) -> None:
    model = AutoModelForCausalLM.from_pretrained(reduced.path)
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(reduced.path)
    fact = reduced.world.facts[0]
    prompt = tokenizer(reduced.world.prompts(fact), return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(out[0, prompt.input_ids.shape[1] :])
    assert text.startswith(f" {fact.answer}.")


def test_one_pass_agrees_with_greedy_decoding(reduced: Testbed) -> None:
    """Also for wrong answers, where a token past the first could match by chance."""
    facts = reduced.world.facts[:12]
    prompts = [reduced.world.prompts(f, "question_1") for f in facts]
    answers = [f.answer if i % 2 else facts[i - 1].answer for i, f in enumerate(facts)]
    for prompt, answer, match in zip(
        prompts, answers, greedy_matches(reduced.model, reduced.tokenizer, prompts, answers), strict=True
    ):
        ids = join(reduced.tokenizer, prompt, answer)
        out = reduced.model.generate(
            torch.tensor([ids.prompt_ids]), max_new_tokens=len(ids.target_ids), do_sample=False
        )
        assert match == (out[0, len(ids.prompt_ids) :].tolist() == list(ids.target_ids))


def test_tokens_of_prompt_and_answer_are_those_of_the_joined_text(shipped: Testbed) -> None:
    world, tokenizer = shipped.world, shipped.tokenizer
    for fact in world.facts[::7]:
        for form in world.forms(fact.relation):
            prompt = world.prompts(fact, form)
            separate = tokenizer(prompt).input_ids + tokenizer(f" {fact.answer}").input_ids
            assert tokenizer(f"{prompt} {fact.answer}").input_ids == separate
            assert tokenizer.decode(separate) == f"{prompt} {fact.answer}"


def test_many_answers_take_several_tokens(shipped: Testbed) -> None:
    for relation in shipped.world.relations:
        lengths = [len(shipped.tokenizer(f" {a}").input_ids) for a in shipped.world.answers(relation.name)]
        assert sum(length > 1 for length in lengths) >= len(lengths) / 2


def test_special_tokens_are_set_and_none_is_added(shipped: Testbed) -> None:
    tokenizer = shipped.tokenizer
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == shipped.model.config.eos_token_id
    assert tokenizer.pad_token_id == shipped.model.config.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("Mara").input_ids == tokenizer("Mara", add_special_tokens=False).input_ids


@pytest.mark.slow
def test_loading_needs_neither_this_folder_nor_trl_or_peft(tmp_path: Path) -> None:
    code = (
        "import sys; from corsa_plugins.testbed import load_testbed; load_testbed();"
        "assert not {'trl', 'peft', 'datasets'} & set(sys.modules)"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "CORSA_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert not (tmp_path / "cache").exists()


def test_default_recipe_is_the_shipped_one(shipped: Testbed) -> None:
    assert load_testbed(TestbedRecipe()).path == shipped.path
