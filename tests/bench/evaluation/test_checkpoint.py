"""A stopped evaluation goes on where it was, ends with the same numbers, and never with another's."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from corsa_plugins.bench.evaluation import CheckpointError, evaluate
from corsa_plugins.bench.evaluation.checkpoint import input_key
from corsa_plugins.data.requests import EditRequest, Probe

REQUESTS = [
    EditRequest(
        prompt=f"{who} was born in", target_new="Oslo", target_old="Rome", paraphrases=[f"Where was {who} born?"]
    )
    for who in ("Anna Berg", "Rome", "Paris", "Oslo", "France", "Italy", "Spain", "York")
]
UNTOUCHED = [Probe(prompt=f"The capital of {land} is", answer="Rome") for land in ("France", "Italy", "Spain")]


class Stopped(Exception):
    pass


def run(model, tokenizer, checkpoint, requests=REQUESTS, **options):
    options = {"batch_size": 2, "untouched": UNTOUCHED, "max_new_tokens": 4, **options}
    return evaluate(model, tokenizer, requests, progress=False, checkpoint=checkpoint, **options)


def stop_after(model, passes):
    """Make the model's forward pass raise after so many passes; returns how to take that back, and a count."""
    counter = {"passes": 0}

    def hook(module, args):
        counter["passes"] += 1
        if counter["passes"] > passes:
            raise Stopped

    return model.register_forward_pre_hook(hook), counter


@pytest.fixture
def stopped(tiny_llama, tiny_tokenizer, tmp_path):
    """The checkpoint of an evaluation that was stopped about half way."""
    path = tmp_path / "unfinished.jsonl"
    handle, _ = stop_after(tiny_llama, 30)
    with pytest.raises(Stopped):
        run(tiny_llama, tiny_tokenizer, path)
    handle.remove()
    assert len(path.read_text().splitlines()) >= 2, "nothing was finished: the tests here test nothing"
    return path


def test_it_goes_on_with_the_rest_and_ends_with_the_same(tiny_llama, tiny_tokenizer, stopped):
    expected = run(tiny_llama, tiny_tokenizer, None)
    everything, whole = stop_after(tiny_llama, 10**9)
    run(tiny_llama, tiny_tokenizer, None)
    everything.remove()
    handle, rest = stop_after(tiny_llama, 10**9)
    assert run(tiny_llama, tiny_tokenizer, stopped) == expected
    handle.remove()
    assert 0 < rest["passes"] < whole["passes"]
    handle, none = stop_after(tiny_llama, 0)
    assert run(tiny_llama, tiny_tokenizer, stopped) == expected, "the finished file holds everything"
    handle.remove()
    assert none["passes"] == 0


def test_a_line_that_was_cut_off_is_asked_again(tiny_llama, tiny_tokenizer, stopped):
    stopped.write_bytes(stopped.read_bytes()[:-20])
    assert run(tiny_llama, tiny_tokenizer, stopped) == run(tiny_llama, tiny_tokenizer, None)
    assert all(json.loads(line) for line in stopped.read_text().splitlines())


@pytest.mark.parametrize("kept", [0, 5])
def test_a_first_line_that_was_cut_off_is_begun_again(tiny_llama, tiny_tokenizer, stopped, kept):
    stopped.write_bytes(stopped.read_bytes()[:kept])
    assert run(tiny_llama, tiny_tokenizer, stopped) == run(tiny_llama, tiny_tokenizer, None)


def test_another_evaluation_is_refused_by_what_differs(tiny_llama, tiny_tokenizer, stopped):
    before = stopped.read_bytes()
    for options, name in (
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"batch_size": 3}, "batch_size"),
        ({"requests": REQUESTS[1:]}, "requests"),
        ({"fluency_tokens": 3}, "fluency_tokens"),
    ):
        with pytest.raises(CheckpointError, match=rf"something else \(other {name}\)"):
            run(tiny_llama, tiny_tokenizer, stopped, **options)
    with torch.no_grad():
        tiny_llama.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(CheckpointError, match=r"other model"):
        run(tiny_llama, tiny_tokenizer, stopped)
    assert stopped.read_bytes() == before


def test_aliases_are_part_of_what_is_asked_and_without_any_the_key_is_what_it_was():
    probe = {"prompt": "The capital of Italy is", "answer": "Rome"}
    line = json.dumps(["Probe", probe]) + "\n"
    assert input_key([Probe(**probe)]) == {"requests": hashlib.sha256(line.encode()).hexdigest()[:16]}
    assert input_key([Probe(**probe, aliases=["Roma"])]) != input_key([Probe(**probe)])
    assert input_key([Probe(**probe, aliases=["Roma"])]) != input_key([Probe(**probe, aliases=["Urbs"])])


def test_a_file_of_something_else_is_not_overwritten(tiny_llama, tiny_tokenizer, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(CheckpointError, match="not an unfinished evaluation"):
        run(tiny_llama, tiny_tokenizer, path)
    assert path.read_text() == "dear diary\n"


def test_an_adapter_switched_off_is_another_model(tiny_llama, tiny_tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_llama, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    path = tmp_path / "unfinished.jsonl"
    run(model, tiny_tokenizer, path)
    with model.disable_adapter(), pytest.raises(CheckpointError, match="other model"):
        run(model, tiny_tokenizer, path)


def test_a_damaged_models_nan_survives(tiny_llama, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        tiny_llama.lm_head.weight.fill_(torch.nan)
    path = tmp_path / "unfinished.jsonl"
    first = run(tiny_llama, tiny_tokenizer, path)
    again = run(tiny_llama, tiny_tokenizer, path)
    assert repr(again) == repr(first)
    assert again.records[0].edit.log_prob_new != again.records[0].edit.log_prob_new
