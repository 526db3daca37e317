"""Edits of quantised models: beside the weights, which stay as they are, and out as the adapter that they are."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.adapters import Asked, export_difference, export_state, save_edits
from corsa_plugins.alphaedit import AlphaEditor, EditError, EditState, StateError
from corsa_plugins.alphaedit.algorithm import Update
from corsa_plugins.alphaedit.restraint import RestraintSettings
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.weights import mark_of, original_of, write_weight
from corsa_plugins.errors import LoadingError, MissingExtraError, SettingError
from corsa_plugins.model.branch import Branch, branched_modules, put_branch
from corsa_plugins.model.identity import Fingerprint, model_key
from corsa_plugins.model.loading import load_model, put_adapters
from corsa_plugins.model.parts import as_linear_map
from corsa_plugins.model.quantised import is_quantised, stored_parts
from corsa_plugins.model.stored import save_model
from corsa_plugins.rsft import RSFTSettings, rsft
from tests.conftest import TEXTS
from tests.fixtures.alphaedit import LATER, REQUESTS, SETTINGS, Bench

DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]
PACKAGES = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes", "llm-int8": "bitsandbytes"}
IDS = torch.arange(5, 35).view(2, 15)

Quantised = Callable[[], Bench]


@pytest.fixture
def folder(llama_bench: Bench, tmp_path: Path) -> Path:
    save_model(llama_bench.model, llama_bench.tokenizer, tmp_path / "full")
    return tmp_path / "full"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(params=list(PACKAGES))
def quantised(request: pytest.FixtureRequest, folder: Path, device: str) -> Quantised:
    """Loads the same model anew with each call, quantised for real."""
    pytest.importorskip(PACKAGES[request.param])
    pytest.importorskip("accelerate")
    made: list[Any] = []

    def load() -> Bench:
        model, tokenizer = load_model(folder, device=device, dtype=request.param)
        if not made:
            made.append(collect_statistics(model, tokenizer, TEXTS, (0, 1), n_tokens=10**6, sample_size=64))
        return Bench(model=model, tokenizer=tokenizer, statistics=made[0], settings=SETTINGS)

    return load


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model(IDS.to(model.device)).logits


def test_batches_go_in_and_out_and_are_served_as_an_adapter(
    quantised: Quantised, llama_bench: Bench, folder: Path, tmp_path: Path
) -> None:
    bench = quantised()
    assert all(is_quantised(block.mlp.down_proj) for block in bench.model.model.layers)
    assert not Fingerprint.of(bench.model).matches(Fingerprint.of(llama_bench.model))
    down = bench.model.model.layers[0].mlp.down_proj
    stored = sum(part.nbytes for name, part in stored_parts(down).items() if "quant_map" not in name)
    assert stored < 0.4 * down.in_features * down.out_features * 4
    before, key = _logits(bench.model), model_key(bench.model, bench.tokenizer)
    editor = bench.editor(values=replace(SETTINGS.values, batch_size=None))  # as many at once as memory holds
    report = editor.edit(REQUESTS, name="monday")
    editor.edit(LATER, name="tuesday")
    assert len(report.not_edited) <= len(llama_bench.editor().edit(REQUESTS).not_edited) + 1
    edited = _logits(bench.model)
    assert not torch.allclose(edited, before, atol=0.1)
    assert model_key(bench.model, bench.tokenizer) != key

    assert save_edits(editor, tmp_path / "out", report) == "adapter"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "report.json", "state"]
    served = put_adapters(quantised().model, {"default": tmp_path / "out" / "adapter"})
    torch.testing.assert_close(_logits(served), edited, rtol=1e-4, atol=1e-4)

    other = quantised()
    again = AlphaEditor(other.model, other.tokenizer, None, SETTINGS, state=EditState.load(tmp_path / "out" / "state"))
    again.apply()
    assert torch.equal(_logits(other.model), edited)
    with pytest.raises(StateError, match="holds the batches monday, tuesday"):
        export_state(again.state, tmp_path / "twice", asked=Asked(other.model, other.tokenizer))

    editor.revert("monday")
    assert not torch.equal(_logits(bench.model), before)
    editor.revert("tuesday")
    assert torch.equal(_logits(bench.model), before)
    assert branched_modules(bench.model) == []
    assert model_key(bench.model, bench.tokenizer) == key


def test_an_edit_that_fails_leaves_what_was_there(quantised: Quantised, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = quantised()
    editor = bench.editor()
    editor.edit(REQUESTS[:1])
    before, state = _logits(bench.model), editor.state
    nothing = Update(torch.full((32, 1), torch.nan), torch.ones(64, 1))
    with pytest.raises(EditError, match="NaN or infinity; nothing was changed"):
        editor.adopt({0: nothing})
    monkeypatch.setattr(EditState, "with_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        editor.edit(LATER)
    assert torch.equal(_logits(bench.model), before)
    assert editor.state is state


def test_what_cannot_be_is_refused(quantised: Quantised, llama_bench: Bench, tmp_path: Path) -> None:
    bench = quantised()
    editor = bench.editor()
    with pytest.raises(SettingError, match=r"is quantised, and .* cannot be trained"):
        rsft(bench.model, bench.tokenizer, REQUESTS, RSFTSettings(layer=1))
    with pytest.raises(SettingError, match=r"down_proj is quantised, and the restraint"):
        editor.settings = replace(SETTINGS, restraint=RestraintSettings(rule="relative_change"))
    editor.edit(REQUESTS[:1])
    with pytest.raises(SettingError, match="lies beside its weight"):
        save_model(bench.model, bench.tokenizer, tmp_path / "saved")
    with pytest.raises(SettingError, match="is quantised, and a difference"):
        export_difference(bench.model, Asked(quantised().model, bench.tokenizer), tmp_path / "difference")
    with pytest.raises(StateError, match="another model"):
        AlphaEditor(llama_bench.model, bench.tokenizer, None, SETTINGS, state=editor.state)
    assert not list(tmp_path.glob("saved/*"))
    assert not (tmp_path / "difference").exists()


@pytest.mark.parametrize("kind", list(PACKAGES))
def test_a_package_that_is_missing_is_named(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    with pytest.raises(MissingExtraError, match=rf"dtype {kind} needs {PACKAGES[kind]}: .*\[quantised\]"):
        load_model(folder, device="cpu", dtype=kind)


@pytest.mark.parametrize(("kind", "needed"), [("gptq", "optimum"), ("awq", "gptqmodel"), ("eetq", "kernels")])
def test_a_folder_of_another_kind_names_what_it_needs(folder: Path, kind: str, needed: str) -> None:
    if importlib.util.find_spec(needed) is not None:
        pytest.skip(f"{needed} is installed")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": kind, "bits": 4, "group_size": 32, "zero_point": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink()
    with pytest.raises(LoadingError, match=rf"full cannot be loaded: .* requires {needed}"):
        load_model(folder, device="cpu")
    with pytest.raises(LoadingError, match="of a quantised model already: leave the dtype out"):
        load_model(folder, device="cpu", dtype="nf4")


def test_what_keeps_packed_integers_in_buffers_is_edited_beside_them() -> None:
    """The layout of GPTQ and AWQ, which have no CPU here: told by what it keeps, not by its class."""

    class Packed(torch.nn.Module):
        in_features, out_features = 6, 4

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.arange(24, dtype=torch.int8).view(4, 6))
            self.register_buffer("scales", torch.ones(4, 1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ (self.qweight * self.scales).T

    packed = Packed()
    linear = as_linear_map("packed", packed)
    assert linear is not None
    assert linear.quantised
    inputs, stored = torch.randn(3, 6), {name: part.clone() for name, part in stored_parts(packed).items()}
    plain, mark = packed(inputs), mark_of(linear)
    update = Update(torch.randn(4, 2), torch.randn(6, 2))
    write_weight(linear, original_of(linear), [update])
    torch.testing.assert_close(packed(inputs), plain + inputs @ update.right @ update.left.T)
    assert mark_of(linear) != mark
    assert all(torch.equal(part, stored[name]) for name, part in stored_parts(packed).items())
    with pytest.raises(SettingError, match="what is put beside its weight is a product"):
        write_weight(linear, original_of(linear), [update], [torch.zeros(4, 6)])
    write_weight(linear, original_of(linear), [])
    assert mark_of(linear) == mark


def test_a_gguf_file_is_not_quantised_again(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SettingError, match="write it out first"):
        load_model(tmp_path / "model.gguf", device="cpu", dtype="nf4")


def test_a_change_lies_beside_any_map_and_moves_with_it() -> None:
    torch.manual_seed(0)
    linear, inputs = torch.nn.Linear(6, 4), torch.randn(3, 6)
    plain = linear(inputs)
    left, right = torch.randn(4, 2), torch.randn(6, 2)
    put_branch(linear, Branch(left, right))
    wanted = plain + inputs @ right @ left.T
    for module in (linear, copy.deepcopy(linear)):
        torch.testing.assert_close(module(inputs), wanted)
        assert set(module.state_dict()) == {"weight", "bias"}
    put_branch(linear, Branch(2 * left, right))  # in the place of the first, not beside it
    torch.testing.assert_close(linear(inputs), plain + 2 * (wanted - plain))
    twin = copy.deepcopy(linear)
    put_branch(linear, None)
    assert torch.equal(linear(inputs), plain)
    put_branch(twin, None)
    assert torch.equal(twin(inputs), plain)
