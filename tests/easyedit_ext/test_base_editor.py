"""In the real EasyEdit: ``BaseEditor`` runs both methods in every mode, and with its parts off AlphaEdit+ is AlphaEdit.

Needs a clone of EasyEdit, named by EASYEDIT_HOME, and a Python that can import it::

    EASYEDIT_HOME=~/EasyEdit python -m pytest -p tests.easyedit_ext.operators tests/easyedit_ext
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import easyedit_ext
from corsa_plugins.alphaedit import EditState
from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from easyedit_ext.hparams.family import FAMILY
from easyedit_ext.records import record_of
from tests.easyedit_ext.conftest import LAYERS, TEMPLATES, changed, small_model, weights

HOME = os.environ.get("EASYEDIT_HOME")
EXAMPLES = Path(__file__).parents[2] / "examples" / "easyedit"
NAMES = {"llama": "llama-tiny", "gpt2": "gpt2-xl-tiny"}  # EasyEdit goes by what the name contains
OTHERS = {kind.METHOD: kind for kind in FAMILY} | {"LocFTBF": easyedit_ext.LocFTBFHyperParams}
CONTEXTS = ["{}", "The city is old. {}", "Anna was there. {}"]

pytestmark = pytest.mark.skipif(HOME is None, reason="EASYEDIT_HOME names no clone of EasyEdit")

PROMPTS: dict[str, Any] = {
    "prompts": ["The capital of France is", "Anna Berg was born in", "The capital of Italy is"],
    "target_new": ["Oslo", "New York City", "Madrid"],
    "ground_truth": ["Paris", "Oslo", "Rome"],
    "subject": ["France", "Anna Berg", "Italy"],
    "rephrase_prompts": ["What is the capital of France?", "Where was Anna Berg born?", "Italy's capital is called"],
}
PROBES: dict[str, Any] = {
    "locality_inputs": {
        "neighborhood": {"prompt": ["The capital of Spain is"] * 3, "ground_truth": ["Madrid"] * 3},
    },
    "portability_inputs": {
        "one_hop": {"prompt": ["The mayor of the capital works in"] * 3, "ground_truth": ["Oslo"] * 3},
    },
}


@pytest.fixture(scope="session")
def easyeditor() -> Any:
    """The clone, with the methods registered."""
    assert HOME is not None
    sys.path.insert(0, HOME)
    easyedit_ext.register()
    return importlib.import_module("easyeditor")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes logs where it is
    torch.manual_seed(0)


@pytest.fixture
def folder(model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    """The model, saved under a name that EasyEdit takes for one of its family."""
    path = tmp_path / NAMES[model.config.model_type]
    model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def projector(model: PreTrainedModel, collect: Callable[..., str], tmp_path: Path) -> Callable[[list[int]], str]:
    """AlphaEdit's file of projectors."""

    def save(layers: list[int]) -> str:
        statistics, found = KeyStatistics.load(collect(model)), []
        for layer in layers:
            space = statistics.null_space(layer, NullSpaceRule("share", 0.7))
            basis = space.coordinates(torch.eye(space.d, dtype=torch.float64), space.n_null)
            found.append((basis.T @ basis).float())
        torch.save(torch.stack(found), tmp_path / "P.pt")
        return str(tmp_path / "P.pt")

    return save


@pytest.fixture
def hparams(
    easyeditor: Any, model: PreTrainedModel, folder: str, projector: Callable[..., str], tmp_path: Path
) -> Callable[..., Any]:
    """Hyper-parameters of a method, from a YAML file."""

    def make(alg_name: str, layers: list[int], batch_size: int = 1, **fields: Any) -> Any:
        settings = {"alg_name": alg_name, "model_name": folder, "device": "cpu", "batch_size": batch_size}
        if alg_name == "RSFT":
            settings |= {"layers": layers, "epochs": 2, "steps": 3, "learning_rate": 0.01}
        else:  # everything AlphaEdit's files have
            settings |= {
                "layers": layers, "layer_selection": "all", "fact_token": "subject_last", "v_num_grad_steps": 10,
                "v_lr": 0.1, "v_loss_layer": 2, "v_weight_decay": 0.5, "clamp_norm_factor": 0.75, "kl_factor": 0.0625,
                "mom2_adjustment": True, "mom2_update_weight": 1, "mom2_dataset": "wikipedia", "mom2_n_samples": 10,
                "mom2_dtype": "float32", "nullspace_threshold": 0.02, "L2": 1, "stats_dir": str(tmp_path / "stats"),
                "P_loc": projector(layers), **TEMPLATES[model.config.model_type],
            }  # fmt: skip
        path = tmp_path / f"{alg_name}.yaml"
        path.write_text(yaml.safe_dump(settings | fields))
        kinds = {
            "AlphaEdit": lambda: easyeditor.AlphaEditHyperParams,
            "AlphaEditPlus": lambda: easyedit_ext.AlphaEditPlusHyperParams,
            "RSFT": lambda: easyedit_ext.RSFTHyperParams,
        }
        return kinds[alg_name]().from_hparams(str(path))

    return make


def run(editor: Any, mode: str, sequential: bool) -> Any:
    """Three requests through one of ``BaseEditor``'s doors."""
    asked = {**PROMPTS, **{name: {k: dict(v) for k, v in probe.items()} for name, probe in PROBES.items()}}
    options = {"sequential_edit": sequential, "verbose": False}
    if mode == "batch_edit":
        return editor.batch_edit(**asked, **options)
    if mode == "edit":
        return editor.edit(**asked, **options)
    from easyeditor.editors.utils import _prepare_requests

    prompts, target_new, truth = (asked.pop(name) for name in ("prompts", "target_new", "ground_truth"))
    return editor.edit_requests(_prepare_requests(prompts, target_new, truth, **asked), **options)


def alphaedits_module(contexts: list[str]) -> Any:
    """EasyEdit keeps AlphaEdit's contexts, projectors and earlier keys in its module: begin anew, with these."""
    module = importlib.import_module("easyeditor.models.alphaedit.AlphaEdit_main")
    module.P_loaded = module.cache_c_new = False  # type: ignore[attr-defined]
    module.CONTEXT_TEMPLATES_CACHE = [[contexts[0]], contexts[1:]]  # type: ignore[attr-defined]
    return module


def shape(value: Any) -> Any:
    """The structure of metrics: names, and how many values."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items() if name != "time"}
    return len(value) if isinstance(value, list) else type(value).__name__


def test_registering_adds_two_methods_and_changes_none(easyeditor: Any) -> None:
    algorithms = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
    editors = importlib.import_module("easyeditor.editors.editor")
    batchable = importlib.import_module("easyeditor.editors.batch_editor").BatchEditor.is_batchable_method
    before = dict(algorithms), batchable, editors.BaseEditor.__init__
    easyedit_ext.register()
    after = importlib.import_module("easyeditor.editors.batch_editor").BatchEditor.is_batchable_method
    assert before == (dict(algorithms), after, editors.BaseEditor.__init__)
    assert editors.ALG_DICT["AlphaEditPlus"] is easyedit_ext.apply_alphaedit_plus_to_model
    assert editors.ALG_DICT["RSFT"] is easyedit_ext.apply_rsft_to_model
    assert algorithms["AlphaEdit"].__module__.startswith("easyeditor.")
    assert [batchable(name) for name in ("AlphaEditPlus", "RSFT", "MEMIT", "AlphaEdit", "ROME", "IKE")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "restored"])
@pytest.mark.parametrize("mode", ["edit", "batch_edit", "edit_requests"])
@pytest.mark.parametrize("alg_name", ["AlphaEditPlus", "RSFT"])
@pytest.mark.parametrize("layers", [[1], [0, 1]], ids=["one layer", "two layers"])
def test_base_editor_in_every_mode(
    easyeditor: Any, hparams: Callable[..., Any], alg_name: str, mode: str, sequential: bool, layers: list[int]
) -> None:
    batch_size = 2 if mode == "batch_edit" else 1
    fields = {} if alg_name == "RSFT" else {"contexts": CONTEXTS}
    editor = easyeditor.BaseEditor.from_hparams(hparams(alg_name, layers, batch_size, **fields))
    model, before = editor.model, weights(editor.model)
    metrics, edited, originals = run(editor, mode, sequential)
    assert edited is model is editor.model
    assert len(metrics) == 3
    if sequential:
        assert changed(model, before)
        assert changed(model, before) <= set(originals)
    else:
        assert not changed(model, before), "the weights were not restored"
    calls = easyedit_ext.edit_report(model)
    assert [len(call.requests) for call in calls] == ([2, 1] if mode == "batch_edit" else [1, 1, 1])
    if alg_name == "AlphaEditPlus":
        remembered = [call.report.requests[0].prior_conflict is not None for call in calls]
        assert remembered == [sequential and place > 0 for place in range(len(calls))]
        if sequential:
            easyedit_ext.save(model, "edits")
            assert len(EditState.load("edits").requests) == 3
    alphaedits_module(CONTEXTS)
    reference = easyeditor.BaseEditor.from_hparams(hparams("AlphaEdit", layers, batch_size))
    expected = run(reference, mode, sequential)[0]
    assert shape(metrics) == shape(expected)
    assert metrics[0]["pre"] == expected[0]["pre"]


@pytest.mark.parametrize(
    ("mode", "sequential"),
    [("edit", True), ("batch_edit", True), ("batch_edit", False)],
    ids=["one by one", "batches", "one batch"],
)
@pytest.mark.parametrize("layers", [[0], [0, 1]], ids=["one layer", "two layers"])
def test_with_its_parts_off_it_is_easyedits_alphaedit(
    easyeditor: Any, hparams: Callable[..., Any], mode: str, sequential: bool, layers: list[int]
) -> None:
    batch_size = {("edit", True): 1, ("batch_edit", True): 2, ("batch_edit", False): 3}[mode, sequential]
    off = {"conflict_weights": False, "search": False, "smoothing": False, "prior_weight": 1, "contexts": CONTEXTS}
    updates = []
    for alg_name, fields in (("AlphaEdit", {}), ("AlphaEditPlus", off)):
        alphaedits_module(CONTEXTS)
        editor = easyeditor.BaseEditor.from_hparams(hparams(alg_name, layers, batch_size, **fields))
        before = weights(editor.model)
        run(editor, mode, True)
        updates.append({name: tensor - before[name] for name, tensor in weights(editor.model).items()})
    theirs, ours = updates
    edited = {name for name, update in theirs.items() if update.any()}
    assert len(edited) == len(layers)
    assert edited == {name for name, update in ours.items() if update.any()}
    for name in edited:
        assert (ours[name] - theirs[name]).norm() < 1e-3 * theirs[name].norm()


@pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "restored"])
@pytest.mark.parametrize("alg_name", OTHERS)
def test_every_other_method_in_base_editor(
    easyeditor: Any,
    folder: str,
    model: PreTrainedModel,
    collect: Callable[..., str],
    tmp_path: Path,
    alg_name: str,
    sequential: bool,
) -> None:
    """Three requests one by one; ENCORE's and NAS's own rules over the edits before, and a training."""
    fields: dict[str, Any] = {"alg_name": alg_name, "model_name": folder, "device": "cpu"}
    if alg_name == "LocFTBF":
        fields |= {"layers": [1], "epochs": 4, "learning_rate": 0.01}
    else:
        fields |= {
            "layers": [0, 1], "v_num_grad_steps": 3, "mom2_update_weight": 0.5, "nullspace_by": "share",
            "nullspace_threshold": 0.5, "n_contexts": 1, "stats_dir": collect(model),
            **TEMPLATES[model.config.model_type],
        }  # fmt: skip
    path = tmp_path / f"{alg_name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    editor = easyeditor.BaseEditor.from_hparams(OTHERS[alg_name].from_hparams(str(path)))
    before = weights(editor.model)
    metrics, edited, originals = run(editor, "edit", sequential)
    assert edited is editor.model
    assert all({"pre", "post"} <= set(metric) for metric in metrics)
    assert [len(call.requests) for call in easyedit_ext.edit_report(edited)] == [1, 1, 1]
    assert changed(edited, before) == (set(originals) if sequential else set())


@pytest.mark.parametrize("alg_name", ["AlphaEditPlus", "RSFT"])
def test_a_pair_of_model_and_tokenizer(
    easyeditor: Any,
    hparams: Callable[..., Any],
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    alg_name: str,
) -> None:
    chosen = hparams(alg_name, [1])
    chosen.model_name = (model, tiny_tokenizer)
    editor = easyeditor.BaseEditor.from_hparams(chosen)
    before = weights(model)
    metrics, edited, _ = run(editor, "edit", True)
    assert edited is model
    assert changed(model, before)
    assert all("rewrite_acc" in metric["post"] for metric in metrics)


def test_padding_sides_are_those_of_methods_of_their_kind(easyeditor: Any, hparams: Callable[..., Any]) -> None:
    sides = {
        name: easyeditor.BaseEditor.from_hparams(hparams(name, [1])).tok.padding_side
        for name in ("AlphaEdit", "AlphaEditPlus", "RSFT")
    }
    assert sides == {"AlphaEdit": "right", "AlphaEditPlus": "right", "RSFT": "left"}


def test_two_editors_in_turn_do_not_mix(easyeditor: Any, hparams: Callable[..., Any]) -> None:
    first, second, alone = (
        easyeditor.BaseEditor.from_hparams(hparams("AlphaEditPlus", [1], contexts=CONTEXTS)) for _ in range(3)
    )
    start = weights(alone.model)
    for place in range(3):
        asked = {name: [values[place]] for name, values in PROMPTS.items()}
        first.edit(**asked, sequential_edit=True, verbose=False)
        second.edit(**asked, sequential_edit=False, verbose=False)
        alone.edit(**asked, sequential_edit=True, verbose=False)
    assert not changed(first.model, weights(alone.model))
    assert not changed(second.model, start)
    assert len(record_of(first.model).state.batches) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("script", ["alphaedit_plus.py", "rsft.py"])
def test_the_examples_run(
    easyeditor: Any,
    hparams: Callable[..., Any],
    collect: Callable[..., str],
    model: PreTrainedModel,
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probe = Probe(prompt="The capital of Spain is", answer="Madrid")
    requests = [
        EditRequest(prompt=p, target_new=t, subject=s, target_old=o, paraphrases=(r,), neighborhood=(probe,))
        for p, t, o, s, r in zip(*PROMPTS.values(), strict=True)
    ]
    write_requests(tmp_path / "facts.jsonl", requests)
    alg_name = {"alphaedit_plus.py": "AlphaEditPlus", "rsft.py": "RSFT"}[script]
    fields = {} if alg_name == "RSFT" else {"stats_dir": collect(model), "nullspace_by": "share"}
    hparams(alg_name, list(LAYERS), **fields)
    arguments = [script, str(tmp_path / f"{alg_name}.yaml"), str(tmp_path / "facts.jsonl"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    namespace = runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert "The capital of France is" in capsys.readouterr().out
    saved = type(model).from_pretrained(tmp_path / "out" / "model")
    assert not changed(saved, weights(namespace["model"]))
    assert changed(saved, weights(small_model(model.config.model_type, model.config.vocab_size)))
    if alg_name == "AlphaEditPlus":
        assert len(EditState.load(tmp_path / "out" / "edits").requests) == 3


def test_the_benchmark_gives_alphaedit_the_values_of_alphaedit_plus(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.easyedit", "--edits", "2", "--seeds", "3", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parents[1], timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_method = {row["method"]: row for row in rows}
    assert len(by_method) == len(rows) == 8
    assert all(method in done.stdout for method in by_method)
    (off,) = (row for method, row in by_method.items() if "parts off, v_stop_loss" in method)
    theirs = by_method["AlphaEdit (EasyEdit's)"]
    for name in ("rewrite", "rephrase", "neighborhood", "untouched", "same subject"):
        assert abs(theirs[name] - off[name]) < 0.05
    assert theirs["rewrite"] > by_method["not edited"]["rewrite"]
