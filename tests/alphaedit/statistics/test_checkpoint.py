"""Through every interruption, to the result of a collection without any."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.packing import ResumeError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from tests.conftest import DOCUMENTS, llama
from tests.support.collecting import collect_into, fails_after, plain_rows
from tests.support.flips import flipped_copies
from tests.support.mixtures import MIXTURES


class Killed(BaseException):
    """What cannot be caught, as far as the collection knows."""


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("error", [Killed(), KeyboardInterrupt(), OSError("the disk is gone")])
def test_an_interrupted_collection_goes_on_to_the_same_result(tmp_path, tiny_llama, tiny_tokenizer, error, pack):
    whole = collect_into(tmp_path / "whole", tiny_llama, tiny_tokenizer, pack=pack)
    for n in (9, 17, 17):
        with pytest.raises(type(error)):
            collect_into(tmp_path / "parts", tiny_llama, tiny_tokenizer, fails_after(n, error), pack=pack)
        with pytest.raises(StatisticsError, match="not finished"):
            KeyStatistics.load(tmp_path / "parts")
    read = []
    parts = collect_into(
        tmp_path / "parts", tiny_llama, tiny_tokenizer, (read.append(t) or t for t in DOCUMENTS), pack=pack
    )
    for layer in (0, 1):
        assert torch.allclose(parts.moment(layer), whole.moment(layer), rtol=1e-12, atol=0)
        assert torch.equal(parts.sample(layer), whole.sample(layer))
    assert dict(parts.about) == dict(whole.about)
    assert not list((tmp_path / "parts").glob("*partial*"))


def test_work_that_was_resumed_is_not_done_again(tmp_path, tiny_llama, tiny_tokenizer):
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(20, KeyboardInterrupt()))
    tokens = []
    tiny_llama.model.embed_tokens.register_forward_hook(lambda _, args, out: tokens.append(args[0].numel()))
    collect_into(tmp_path, tiny_llama, tiny_tokenizer)
    whole = sum(len(row) for row in plain_rows(tiny_tokenizer, DOCUMENTS[:20], 24, True, 10**6))
    assert sum(tokens) < 1200 - whole + 2 * 3 * 24


def test_what_was_read_is_kept_while_eigenvectors_are_computed(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect_into(tmp_path, tiny_llama, tiny_tokenizer)

    def never(*args, **kwargs):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(tiny_llama, "forward", never)
    assert collect_into(tmp_path, tiny_llama, tiny_tokenizer).count(0) == 1200


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_killed_process_is_taken_up_again(tmp_path, tiny_llama, tiny_tokenizer):
    def slow():
        for number, document in enumerate(DOCUMENTS):
            if number > 30:
                time.sleep(0.2)
            yield document

    def work():
        torch.set_num_threads(1)
        collect_into(tmp_path / "killed", tiny_llama, tiny_tokenizer, slow(), checkpoint_seconds=0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    partial = tmp_path / "killed" / "partial.safetensors"
    try:
        deadline = time.monotonic() + 60
        while not partial.exists():
            assert process.is_alive(), "the collection ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    read = []
    tiny_llama.model.embed_tokens.register_forward_hook(lambda _, args, out: read.append(args[0].numel()))
    resumed = collect_into(tmp_path / "killed", tiny_llama, tiny_tokenizer)
    assert sum(read) < 1200
    whole = collect_into(tmp_path / "whole", tiny_llama, tiny_tokenizer)
    assert torch.allclose(resumed.moment(1), whole.moment(1), rtol=1e-12, atol=0)
    assert torch.equal(resumed.sample(0), whole.sample(0))


@pytest.mark.parametrize("suffix", ["new", "part"])
def test_what_a_kill_left_of_a_checkpoint_goes_though_none_is_written_again(
    tmp_path, tiny_llama, tiny_tokenizer, suffix
):
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(20, KeyboardInterrupt()))
    left = tmp_path / f".partial.safetensors.abcdefgh.{suffix}"
    left.write_bytes(b"" if suffix == "new" else b"half")
    collect_into(tmp_path, tiny_llama, tiny_tokenizer)
    whole = sorted(path.name for path in tmp_path.iterdir())
    assert not [name for name in whole if "partial" in name]
    # Killed between the last file and the end: the same call is told that they are finished, and nothing is left.
    left.write_bytes(b"")
    (tmp_path / "partial.safetensors").write_bytes(b"older")
    os.utime(tmp_path / "partial.safetensors", ns=(0, 0))
    with pytest.raises(StatisticsError, match="finished"):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == whole
    # One that is younger is of a run that begins anew, and may be at work.
    (tmp_path / "partial.safetensors").write_bytes(b"younger")
    with pytest.raises(StatisticsError, match="finished"):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer)
    assert (tmp_path / "partial.safetensors").exists()


def refused(folder, model, tokenizer, texts=DOCUMENTS, **changes):
    with pytest.raises(ResumeError) as caught:
        collect_into(folder, model, tokenizer, texts, **changes)
    return str(caught.value)


def test_work_begun_differently_is_not_taken_up(tmp_path, tiny_llama, tiny_tokenizer):
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(20, KeyboardInterrupt()))
    kept = (tmp_path / "partial.safetensors").read_bytes()
    assert "length was 24 and is 25" in refused(tmp_path, tiny_llama, tiny_tokenizer, length=25)
    assert "layers was [0, 1] and is [1]" in refused(tmp_path, tiny_llama, tiny_tokenizer, layers=(1,))
    assert "seed was 0 and is 3" in refused(tmp_path, tiny_llama, tiny_tokenizer, seed=3)
    assert "n_tokens was 1200 and is 999" in refused(tmp_path, tiny_llama, tiny_tokenizer, n_tokens=999)
    assert "pack was True" in refused(tmp_path, tiny_llama, tiny_tokenizer, pack=False)
    assert "dtype was 'float32' and is 'bfloat16'" in refused(tmp_path, tiny_llama.bfloat16(), tiny_tokenizer)
    tiny_llama.float()
    changed = ["another text", *DOCUMENTS[1:]]
    assert "the text is another one" in refused(tmp_path, tiny_llama, tiny_tokenizer, changed)
    assert "the text has 3 documents" in refused(tmp_path, tiny_llama, tiny_tokenizer, DOCUMENTS[:3])
    other = llama(len(tiny_tokenizer), seed=5)
    assert "other weights in model.embed_tokens.weight" in refused(tmp_path, other, tiny_tokenizer)
    foreign = tiny_tokenizer.__class__.from_pretrained(saved(tiny_tokenizer, tmp_path / "tokenizer"))
    foreign.add_tokens(["Zanzibar"])
    assert "another vocabulary" in refused(tmp_path, tiny_llama, foreign)
    assert (tmp_path / "partial.safetensors").read_bytes() == kept
    (tmp_path / "partial.safetensors").write_bytes(kept[: len(kept) // 2])
    assert "is damaged" in refused(tmp_path, tiny_llama, tiny_tokenizer)
    fresh = collect_into(tmp_path, tiny_llama, tiny_tokenizer, fresh=True)
    assert fresh.count(0) == 1200


@pytest.mark.parametrize("experts", [False, True])
def test_one_flipped_bit_of_what_was_kept_is_noticed(tmp_path, tiny_llama, tiny_tokenizer, experts):
    """In the tensors and in what is said of them; a bit that says nothing leads to the same statistics."""
    model = tiny_llama
    if experts:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MIXTURES["mixtral"][0](vocab_size=len(tiny_tokenizer)))
    whole = collect_into(tmp_path / "whole", model, tiny_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path / "parts", model, tiny_tokenizer, fails_after(20, KeyboardInterrupt()))
    names = safe_open(tmp_path / "parts" / "partial.safetensors", framework="pt").keys()
    assert {name.partition(".")[0] for name in names} == {"sum", "sample", *(["taken"] * experts)}
    named = 0
    for flipped in flipped_copies(tmp_path / "parts", "partial.safetensors", 24):
        try:
            resumed = collect_into(flipped, model, tiny_tokenizer)
        except ResumeError as error:
            named += "partial.safetensors" in str(error)
        else:
            for layer in (0, 1):
                assert torch.allclose(resumed.moment(layer), whole.moment(layer), rtol=1e-12, atol=0)
                assert torch.equal(resumed.sample(layer), whole.sample(layer))
    assert named >= 20


@pytest.mark.parametrize("what", ["sum.0", "sample.1", "count", "n_texts"])
def test_another_number_in_what_was_kept_is_noticed(tmp_path, tiny_llama, tiny_tokenizer, what):
    """Each of which is as plausible as the right one."""
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(20, KeyboardInterrupt()))
    file = tmp_path / "partial.safetensors"
    with safe_open(file, framework="pt") as opened:
        state = json.loads(opened.metadata()["state"])
    tensors = load_file(file)
    if what in tensors:
        tensors[what][0, 0] *= 1 + 2**-20
    elif what == "count":
        state["count"] -= 1
    else:
        state["position"]["n_texts"] -= 1
    save_file(tensors, file, metadata={"state": json.dumps(state)})
    assert "partial.safetensors is damaged" in refused(tmp_path, tiny_llama, tiny_tokenizer)


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


def test_a_full_disk_stops_neither_the_work_nor_what_was_saved(
    tmp_path, tiny_llama, tiny_tokenizer, monkeypatch, caplog
):
    from corsa_plugins.alphaedit.statistics import checkpoint

    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(20, KeyboardInterrupt()))
    kept = (tmp_path / "partial.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="No space left"):
            collect_into(tmp_path, tiny_llama, tiny_tokenizer, checkpoint_seconds=0)
    assert "cannot be saved" in caplog.text
    assert (tmp_path / "partial.safetensors").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.PARTIAL]
    assert collect_into(tmp_path, tiny_llama, tiny_tokenizer).count(1) == 1200
