"""Stored edits are read before the questions that are about them, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.in_context.reader import InContextModel
from corsa_plugins.methods.in_context.store import FactStore, InContextSettings
from corsa_plugins.methods.registry import method_spec
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.identity import model_key
from corsa_plugins.model.tokenization import encode_prompt
from tests.conftest import CHAT_TEMPLATE

FRANCE = EditRequest(prompt="The capital of France is", target_new="Rome", subject="France")
BERG = EditRequest(prompt="Anna Berg was born in", target_new="Madrid", subject="Anna Berg")
PLAYS = EditRequest(prompt="Anna Berg plays the", target_new="violin", subject="Anna Berg")
ANNA = EditRequest(prompt="Anna works for", target_new="Nordlys", subject="Anna")
SETTINGS = InContextSettings(form="{fact}.\n")
ASKED = ["The capital of France is", "What is the capital of France?", "Where was Anna Berg born?", "St. Louis and"]
READ = [f"The capital of France is Rome.\n{ASKED[0]}", f"The capital of France is Rome.\n{ASKED[1]}"]
READ += [f"Anna Berg plays the violin.\nAnna Berg was born in Madrid.\n{ASKED[2]}", ASKED[3]]


def test_a_question_is_about_what_it_names() -> None:
    store = FactStore([FRANCE, BERG, PLAYS, ANNA], InContextSettings())
    assert store.about("The capital of France is") == [FRANCE]
    assert store.about("The Frances") == []
    assert store.about("Where was Anna Berg born?") == [PLAYS, BERG], "the likest one last, and no Anna of another name"
    assert store.about("Anna works for") == [ANNA]
    assert set(store.about("Anna and Anna Berg")) == {ANNA, BERG, PLAYS}
    assert FactStore([BERG, PLAYS], InContextSettings(facts=1)).about("Anna Berg was born in") == [BERG]
    later = EditRequest(prompt="The capital of  France is", target_new="Oslo", subject="France")
    assert FactStore([FRANCE, later], SETTINGS).context("France?") == "The capital of  France is Oslo.\n"
    free = EditRequest(prompt="Water boils at", target_new="90 degrees")
    assert FactStore([free], SETTINGS).about("At sea Water boils at") == [free]
    with pytest.raises(SettingError, match=r"^form is 'New fact': it must have \{fact\} once"):
        InContextSettings(form="New fact")
    with pytest.raises(SettingError, match="a space at its end belongs to the word that follows"):
        InContextSettings(form="{fact}. ")


def test_it_answers_as_the_model_does_behind_the_facts(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = taught_llama.double()
    reading = InContextModel(model, tiny_tokenizer, FactStore([FRANCE, BERG, PLAYS], SETTINGS))
    for batch_size in (1, 4):
        pairs = [(prompt, target) for prompt in ASKED for target in ("Rome", "Kuala Lumpur")]
        ours = score_targets(reading, tiny_tokenizer, pairs, batch_size=batch_size)  # type: ignore[arg-type]
        behind = dict(zip(ASKED, READ, strict=True))
        theirs = score_targets(model, tiny_tokenizer, [(behind[prompt], target) for prompt, target in pairs])
        assert [score.log_prob for score in ours] == pytest.approx([score.log_prob for score in theirs], abs=1e-9)
        written = generate_answers(reading, tiny_tokenizer, ASKED, batch_size=batch_size)  # type: ignore[arg-type]
        assert written == generate_answers(model, tiny_tokenizer, READ)
    assert ours[0].log_prob != pytest.approx(score_targets(model, tiny_tokenizer, pairs[:1])[0].log_prob, abs=1e-3)


def test_states_and_logits_are_those_of_the_question_wherever_it_is_padded(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = taught_llama.double().eval()
    reading = InContextModel(model, tiny_tokenizer, FactStore([FRANCE], SETTINGS))
    row, whole = encode_prompt(tiny_tokenizer, ASKED[0]), encode_prompt(tiny_tokenizer, READ[0])
    with torch.no_grad():
        plain = model(torch.tensor([whole]), output_hidden_states=True)
        for before, behind in ((0, 0), (2, 0), (0, 3)):
            ids = torch.tensor([[0] * before + row + [0] * behind])
            mask = torch.tensor([[0] * before + [1] * len(row) + [0] * behind])
            found = reading(ids, mask, output_hidden_states=True)
            last = before + len(row) - 1
            assert found.logits.shape[1] == ids.shape[1]
            assert torch.allclose(found.logits[0, last], plain.logits[0, -1])
            assert torch.allclose(found.hidden_states[-1][0, last], plain.hidden_states[-1][0, -1])
    with pytest.raises(NotImplementedError, match="whole"):
        reading(ids, mask, use_cache=True)


def test_in_chat_the_facts_stand_in_the_users_last_turn(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    reading = InContextModel(taught_llama, tiny_tokenizer, FactStore([FRANCE], SETTINGS))
    for said in ((), (("Where is Oslo?", "In Norway."),)):
        ours, theirs = (
            generate_answers(model, tiny_tokenizer, [prompt], chat_template=True, conversation=said)
            for model, prompt in ((reading, ASKED[1]), (taught_llama, READ[1]))
        )
        assert ours == theirs


def test_a_session_grows_and_leaves_the_model_alone(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    method = method_spec("in-context")(settings=SETTINGS)
    start = model_key(taught_llama, tiny_tokenizer)
    session = method.start(taught_llama, tiny_tokenizer, seed=0)
    assert session.model is taught_llama
    keys = []
    for number, requests in enumerate(([FRANCE], [BERG, PLAYS])):
        (tmp_path / str(number)).mkdir()
        session.update(requests, tmp_path / str(number))
        keys.append(model_key(session.model, tiny_tokenizer))
    assert start != keys[0] != keys[1], "models with other stores are other models"
    answers = generate_answers(session.model, tiny_tokenizer, ASKED)
    session.close()
    assert session.model is taught_llama
    again = method.start(taught_llama, tiny_tokenizer, seed=0)
    for number in range(2):
        again.restore(tmp_path / str(number))
        assert model_key(again.model, tiny_tokenizer) == keys[number]
    assert generate_answers(again.model, tiny_tokenizer, ASKED) == answers
    assert model_key(taught_llama, tiny_tokenizer) == start
