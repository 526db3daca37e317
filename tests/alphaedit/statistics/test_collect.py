"""Collecting: the plain sums, whatever the batches, and through every interruption."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from corsa_plugins.alphaedit.statistics.capture import BrokenKeysError
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.packing import ResumeError, TokenRows
from corsa_plugins.alphaedit.statistics.reservoir import Reservoir
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.architecture import find_architecture
from tests.conftest import DOCUMENTS, llama


def gpt2(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config)


def plain_keys(model: PreTrainedModel, rows: list[list[int]], layer: int) -> Tensor:
    """The keys (d, n) of all rows, one row at a time, through the whole model."""
    found: list[Tensor] = []
    down = find_architecture(model).ffn(layer).down.module
    hook = down.register_forward_pre_hook(lambda _, args: found.append(args[0][0].double()))
    try:
        with torch.no_grad():
            for row in rows:
                model(torch.tensor([row]))
    finally:
        hook.remove()
    return torch.cat(found).mT


def plain_rows(tokenizer, texts, length, pack, n_tokens) -> list[list[int]]:
    """The documented rows, written down the long way round."""
    if pack:
        stream = [token for text in texts for token in [*tokenizer.encode(text)[1:], tokenizer.eos_token_id]]
        pieces = [stream[at : at + length - 1] for at in range(0, len(stream), length - 1)]
    else:
        documents = [tokenizer.encode(text)[1:] for text in texts]
        pieces = [ids[at : at + length - 1] for ids in documents for at in range(0, len(ids), length - 1)]
    rows = [[tokenizer.bos_token_id, *piece] for piece in pieces]
    while sum(map(len, rows)) > n_tokens:
        over = sum(map(len, rows)) - n_tokens
        rows[-1] = rows[-1][:-over] if over < len(rows[-1]) else []
        rows = [row for row in rows if row]
    return rows


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("build", "layers"), [(llama, (0, 1)), (gpt2, (1, 0)), (gpt2, (2,))])
def test_it_is_the_plain_sum_of_outer_products(build, layers, pack, tiny_tokenizer):
    model = build(len(tiny_tokenizer)).double().eval()
    found = collect_statistics(
        model, tiny_tokenizer, DOCUMENTS, layers, n_tokens=701, length=24, batch_size=5, pack=pack, sample_size=40
    )
    rows = plain_rows(tiny_tokenizer, DOCUMENTS, 24, pack, 701)
    assert found.layers == tuple(sorted(layers))
    places = [place for _, place in sorted(Reservoir(40, 0).take(701).items())]  # the same tokens in every layer
    for layer in layers:
        keys = plain_keys(model, rows, layer)
        assert found.count(layer) == keys.shape[1] == 701
        # Llama's rotary angles are float32, and padding moves the last bit of a sum
        assert torch.allclose(found.moment(layer), keys @ keys.mT / 701, rtol=1e-7, atol=1e-9)
        assert torch.allclose(found.sample(layer).double(), keys[:, places], atol=1e-5)


def test_batches_change_rounding_only_and_the_sample_not_at_all(tiny_llama, tiny_tokenizer):
    def collect(batch_size):
        return collect_statistics(
            tiny_llama, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=900, length=32, batch_size=batch_size, sample_size=50
        )

    one, many = collect(1), collect(16)
    assert torch.allclose(one.moment(1), many.moment(1), rtol=1e-5, atol=1e-7)
    assert torch.allclose(one.sample(1), many.sample(1), atol=1e-5)
    other = collect_statistics(
        tiny_llama, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=900, length=32, sample_size=50, seed=1
    )
    assert not torch.allclose(one.sample(1), other.sample(1), atol=1e-2)


def test_nothing_above_the_highest_layer_runs_and_the_model_is_as_before(tiny_tokenizer):
    model = gpt2(len(tiny_tokenizer)).train()
    run = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, args, output, name=name: run.update([name]))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    collect_statistics(model, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=100, length=32)
    assert run["transformer.h.0.mlp.c_proj"]
    assert not any(run[name] for name in ("transformer.h.1.mlp.c_proj", "transformer.h.2.ln_1", "lm_head"))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Killed(BaseException):
    """What cannot be caught, as far as the collection knows."""


def fails_after(n: int, error: BaseException):
    yield from DOCUMENTS[:n]
    raise error


def collect_into(folder: Path, model, tokenizer, texts=DOCUMENTS, **changes):
    few = {"n_tokens": 1200, "length": 24, "batch_size": 3, "sample_size": 60, "checkpoint_seconds": 1e9}
    settings = {**few, **changes}
    return collect_statistics(model, tokenizer, texts, settings.pop("layers", (0, 1)), out=folder, **settings)


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


def test_half_added_sums_are_never_kept(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    from corsa_plugins.alphaedit.statistics.checkpoint import KeySums

    whole = collect_into(tmp_path / "whole", tiny_llama, tiny_tokenizer)
    calls = itertools.count()
    plain = torch.Tensor.__matmul__

    def fails(first, second):
        if next(calls) == 7:  # the second layer of the fourth batch
            raise MemoryError
        return plain(first, second)

    add = KeySums.add

    def guarded(self, keys, position):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__matmul__", fails)
            add(self, keys, position)

    with monkeypatch.context() as patch:
        patch.setattr(KeySums, "add", guarded)
        with pytest.raises(MemoryError):
            collect_into(tmp_path / "parts", tiny_llama, tiny_tokenizer)
    parts = collect_into(tmp_path / "parts", tiny_llama, tiny_tokenizer)
    for layer in (0, 1):  # the first was added to, the second was not
        assert torch.allclose(parts.moment(layer), whole.moment(layer), rtol=1e-12, atol=0)


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


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


def test_finished_statistics_are_not_written_over_unasked(tmp_path, tiny_llama, tiny_tokenizer):
    first = collect_into(tmp_path, tiny_llama, tiny_tokenizer).moment(0)
    with pytest.raises(StatisticsError, match="holds finished statistics"):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path, tiny_llama, tiny_tokenizer, fails_after(9, KeyboardInterrupt()), fresh=True)
    assert torch.equal(KeyStatistics.load(tmp_path).moment(0), first)  # there until there are others
    again = collect_into(tmp_path, tiny_llama, tiny_tokenizer, n_tokens=900, layers=(1,), fresh=True)
    assert (again.layers, again.count(1)) == ((1,), 900)
    assert not list(tmp_path.glob("layer_0*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        collect_into(tmp_path / "file", tiny_llama, tiny_tokenizer)


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


def test_too_little_text_is_said(tiny_llama, tiny_tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        found = collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS[:8], (1,), n_tokens=10**6, length=32)
    assert f"the text gave {found.count(1)} tokens of the 1000000" in caplog.text
    assert f"{found.count(1)} tokens are few for the keys of layer 1, which are 64 wide" in caplog.text
    assert found.sample(1).shape == (64, found.count(1))  # all of them: fewer than asked for
    caplog.clear()
    with pytest.raises(StatisticsError, match=r"gave \d+ tokens, and the keys of layer 1 are 64 wide"):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS[:1], (1,), n_tokens=1000)
    with pytest.raises(StatisticsError, match="gave 0 tokens"):
        collect_statistics(tiny_llama, tiny_tokenizer, ["", " \n"], (1,), n_tokens=1000)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (1,), n_tokens=640)
    assert not caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_keys_name_their_layer(tiny_llama, tiny_tokenizer, value):
    with torch.no_grad():
        tiny_llama.model.layers[1].mlp.up_proj.weight[3, 3] = value
    architecture = find_architecture(tiny_llama)
    from corsa_plugins.alphaedit.statistics.capture import KeyCapture

    maps = {layer: architecture.ffn(layer).down for layer in (0, 1)}
    with torch.no_grad(), KeyCapture(tiny_llama, maps) as capture, pytest.raises(BrokenKeysError, match="layer 1: "):
        capture.keys([[1, 2, 3]])
    with pytest.raises(CorsaError, match=r"layer(s\.| )1"):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (0, 1), n_tokens=640)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tokens": 0}, "n_tokens"),
        ({"n_tokens": 1e6}, "n_tokens"),
        ({"n_tokens": 63}, "n_tokens is 63: the keys of layer 0 are 64 wide"),
        ({"length": 0}, "length"),
        ({"length": 1}, "length is 1: 1 tokens of a row"),
        ({"length": 129}, "the model reads 128"),
        ({"batch_size": 0}, "batch_size"),
        ({"sample_size": -1}, "sample_size"),
        ({"seed": "0"}, "seed"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": (0, 2)}, "2 blocks"),
        ({"layers": (-1,)}, "2 blocks"),
    ],
)
def test_settings_out_of_range_are_named(tiny_llama, tiny_tokenizer, changes, message):
    settings = {"n_tokens": 100, "layers": (0,), **changes}
    with pytest.raises(SettingError, match=message):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, settings.pop("layers"), **settings)


def test_what_are_no_texts_or_no_tokens_of_the_model_is_refused(tiny_llama, tiny_tokenizer):
    with pytest.raises(CorsaError, match="document 2 is a dict"):
        collect_statistics(tiny_llama, tiny_tokenizer, ["a", {"text": "b"}], (0,), n_tokens=100)
    tiny_tokenizer.add_tokens(["Zanzibar"])
    with pytest.raises(SettingError, match="use its own tokenizer"):
        collect_statistics(tiny_llama, tiny_tokenizer, ["Zanzibar " * 200], (0,), n_tokens=100)


def test_no_sample_when_none_is_wanted(tmp_path, tiny_llama, tiny_tokenizer):
    found = collect_into(tmp_path, tiny_llama, tiny_tokenizer, sample_size=0)
    assert found.sample(0) is None
    assert found.count(0) == 1200


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(0, 12),
    n=st.integers(0, 400),
    cuts=st.lists(st.integers(1, 90), max_size=12),
    seed=st.integers(0, 9),
)
def test_the_reservoir_does_not_see_batches(size, n, cuts, seed):
    def fill(steps):
        reservoir, kept, at = Reservoir(size, seed), {}, 0
        for step in steps:
            kept.update({slot: at + place for slot, place in reservoir.take(step).items()})
            at += step
        return kept

    steps = []
    for cut in cuts:
        steps.append(min(cut, n - sum(steps)))
    steps.append(n - sum(steps))
    kept = fill([n])
    assert fill(steps) == kept
    assert len(kept) == min(size, n)
    assert len(set(kept.values())) == len(kept)


def test_the_reservoir_is_uniform():
    counts = torch.zeros(60)
    for seed in range(3000):
        reservoir, kept = Reservoir(6, seed), {}
        for start in range(0, 60, 20):
            kept.update({slot: start + place for slot, place in reservoir.take(20).items()})
        counts[list(kept.values())] += 1
    # 300 expected of each, standard deviation 16.4: chi-squared of 59 degrees is under 100 in 99.9 % of cases
    assert float(((counts - 300) ** 2 / 300).sum()) < 100


def test_rows_take_up_where_they_were(tiny_tokenizer):
    for pack in (True, False):
        whole = list(TokenRows(DOCUMENTS, tiny_tokenizer, 20, pack))
        first = TokenRows(DOCUMENTS, tiny_tokenizer, 20, pack)
        begun = list(itertools.islice(first, 11))
        second = TokenRows(DOCUMENTS, tiny_tokenizer, 20, pack)
        second.skip_to(first.position)
        assert begun + list(second) == whole
