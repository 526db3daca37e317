"""Whatever is in a file, its reader reads it, or says what is wrong by an error that is meant for people.

50 spoiled ones of every file; `CORSA_RECORDS=100000` makes it a hundred thousand. Hypothesis spoils others. Data sets
have a test of their own (tests/data/formats/test_many_records.py), and so have journals and files of requests.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.adapters import read_adapter
from corsa_plugins.adapters.export import export_state
from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    EditState,
    KeyStatistics,
    NullSpaceRule,
    ValueSettings,
)
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.texts import read_texts
from corsa_plugins.atlas.facts import read_facts
from corsa_plugins.bench.ability.kept import KeptScores, load_ability
from corsa_plugins.bench.code.results import CodeResult, Judged
from corsa_plugins.bench.code.running import Verdict
from corsa_plugins.bench.curvature.lanczos import Curvature
from corsa_plugins.bench.curvature.storage import load_curvature, save_curvature
from corsa_plugins.bench.evaluation import evaluate, load_evaluation, save_evaluation
from corsa_plugins.bench.merge_sweep import read_sweep
from corsa_plugins.bench.protocols import run_protocol
from corsa_plugins.bench.protocols.folder import RunFolder
from corsa_plugins.bench.routing.descriptions import read_descriptions, write_descriptions
from corsa_plugins.bench.wild.judge import read_labels
from corsa_plugins.cli.values import parse_device_map, parse_layers, parse_max_memory, parse_numbers, parse_tokens
from corsa_plugins.data.code_problems import read_problems, write_problems
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.manifest import MANIFEST, check_folder
from corsa_plugins.methods.registry import make_method, method_specs
from corsa_plugins.model.loading import load_model
from corsa_plugins.parsing import yaml_value
from corsa_plugins.report.protocol_page import write_protocol_page
from corsa_plugins.report.sources import read_sources
from corsa_plugins.rsft import RSFTSettings
from corsa_plugins.sealed import unsealed
from easyedit_ext import hparams as easyedit
from easyedit_ext.hparams import hparams_names, hparams_path
from tests.conftest import DOCUMENTS
from tests.fixtures.alphaedit import REQUESTS
from tests.support.code import UPDATES
from tests.support.small_plans import PLANS
from tests.support.spoiled import spoil

SETTINGS = AlphaEditSettings(
    layers=(0,),
    null_space=NullSpaceRule("share", 0.4),
    values=ValueSettings(steps=3, lr=0.5, lr_unit="relative"),
    ridge=0.1,
    n_contexts=0,
)
COUNT = int(os.environ.get("CORSA_RECORDS", "50"))
RAW = [
    b"", b"null", b"[]", b"{}", b"5", b'"', b"\xff\xfe", b"[" * 2_000, b'{"a":' * 2_000, b"9" * 5_000, b"NaN",
    b"{}\n{}\n", b"\x00" * 99, b"!!bool x", b"a: 2001-99-99", b"&a [*a]", b"- &a {x: *a}",
]  # fmt: skip
SWEEP = [
    {"sweep": "1", "base": "a"},
    {"weight": 0.5, "density": 0.2, "metrics": {"efficacy": 1.0}, "retained": 1.0, "right": "101"},
]
FACT = {"relation": "capital", "answer": "Paris", "aliases": ["Lutetia"], "subject": "France",
        "statements": ["The capital of {} is"], "questions": ["What is the capital of {}?"]}  # fmt: skip

LABELS = [
    {"prompt": "The capital of France is", "right": "Paris", "output": " Paris.", "label": label}
    for label in (True, False)
]
HPARAMS = {
    kind.METHOD: kind for name in easyedit.__all__ if name.endswith("HyperParams") and (kind := getattr(easyedit, name))
}
"""By EasyEdit's name of a method: the class of its hyper-parameters."""


def specs() -> dict[str, Any]:
    """Methods whose frameworks are there, one for each class of settings."""
    found: dict[Any, Any] = {}
    for spec in method_specs():
        if spec.missing is None:
            found.setdefault(spec.settings, spec)
    return {spec.name: spec for spec in found.values()}


def recipe(path: Path) -> None:
    pytest.importorskip("mergekit")
    from mergekit_ext.merging import read_recipe

    read_recipe(path)


def report(file: Path) -> None:
    read_sources([str(file)])


def finished_run(file: Path) -> None:
    """What is in a run's folder, of which the file is a part, and the page about it."""
    folder = next(parent for parent in file.parents if (parent / "run.json").exists())
    result = RunFolder(folder, PLANS["single update"](), ()).result("rsft")
    write_protocol_page(folder.parent / "run.html", [result], asked={})


def claimed_run(file: Path) -> None:
    key = json.loads(file.with_name("key").read_text())
    RunFolder(file.parent, PLANS["single update"](), ()).claim(key)


SETTINGS_OF = {name: kind for name, spec in specs().items() if (kind := spec.settings_class()) is not None}
"""By method: the class of its settings, each class once."""

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "manifest": ("state/manifest.json", lambda file: check_folder(file.parent)),
    "edit state": ("state/state.json", lambda file: EditState.load(file.parent)),
    "tensors of a state": ("state/state.safetensors", lambda file: EditState.load(file.parent)),
    "statistics": ("stats/statistics.json", lambda file: KeyStatistics.load(file.parent)),
    "adapter": ("adapter/adapter_config.json", lambda file: read_adapter(file.parent)),
    "tensors of an adapter": ("adapter/adapter_model.safetensors", lambda file: read_adapter(file.parent)),
    "exported edits": ("adapter/corsa.json", lambda file: read_adapter(file.parent)),
    "summary": ("results/summary.json", lambda file: load_evaluation(file.parent)),
    "summary in a report": ("results/summary.json", lambda file: report(file.parent)),
    "answers": ("results/records.jsonl", lambda file: load_evaluation(file.parent)),
    "recipe": ("recipe.yaml", recipe),
    "facts": ("facts.jsonl", read_facts),
    "problems": ("problems.jsonl", read_problems),
    "sweep": ("sweep.jsonl", read_sweep),
    "sweep in a report": ("sweep.jsonl", report),
    "texts": ("texts.jsonl", lambda file: list(read_texts(file))),
    "model's tensors": ("model/model.safetensors", lambda file: load_model(file.parent, device="cpu")),
    "model's index": ("parts/model.safetensors.index.json", lambda file: load_model(file.parent, device="cpu")),
    "run": ("run/run.json", claimed_run),
    "update": ("run/updates/001-update/update.json", finished_run),
    "report of an update": ("run/updates/001-update/report.json", finished_run),
    "history": ("run/updates/001-update/history.json", finished_run),
    "history in a report": ("run/updates/001-update/history.json", report),
    "code": ("code/code.json", report),
    "curvature": ("curvature.json", load_curvature),
    "curvature in a report": ("curvature.json", report),
    "scores of a harness": ("harness.json", load_ability),
    "scores in a report": ("harness.json", report),
    "labels": ("labels.jsonl", read_labels),
    "descriptions": ("descriptions.json", lambda file: read_descriptions(file, ("one", "two"))),
    **{f"settings of {name}": (f"settings/{name}.json", kind.load) for name, kind in SETTINGS_OF.items()},
    **{f"EasyEdit's {name}": (f"hparams/{name}.json", kind.from_hparams) for name, kind in HPARAMS.items()},
}
"""By what it holds: a file, and what reads it."""


@pytest.fixture(scope="module")
def files(
    _session_taught: LlamaForCausalLM, _session_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: Any
) -> Path:
    """Each of the files, as it should be."""
    pytest.importorskip("peft")
    folder: Path = tmp_path_factory.mktemp("files")
    model, tokenizer = copy.deepcopy(_session_taught), _session_tokenizer
    model.config._name_or_path = "a/model"  # exported edits say what they are for
    statistics = collect_statistics(model, tokenizer, DOCUMENTS, (0,), n_tokens=1000, out=folder / "stats")
    editor = AlphaEditor(model, tokenizer, statistics, SETTINGS)
    editor.edit(REQUESTS[:1], answers=False)
    editor.state.save(folder / "state")
    export_state(editor.state, folder / "adapter")
    save_evaluation(evaluate(model, tokenizer, REQUESTS[:1], max_new_tokens=2, progress=False), folder / "results")
    model_of = {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 1}]}}
    whole = {"merge_method": "scaled_pruned_delta", "base_model": "a", "models": [model_of], "dtype": "float16"}
    (folder / "recipe.yaml").write_text(json.dumps(whole))
    lines = {"facts": [FACT], "sweep": SWEEP, "texts": [{"text": "a"}, {"text": "b"}], "labels": LABELS}
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_problems(folder / "problems.jsonl", UPDATES[:1])
    write_models(_session_taught, tokenizer, folder)
    write_results(_session_taught, tokenizer, folder)
    write_settings(folder)
    return folder


def write_models(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    for name, size in (("model", "1GB"), ("parts", "40KB")):
        model.save_pretrained(folder / name, max_shard_size=size)
        tokenizer.save_pretrained(folder / name)


def write_results(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    method = make_method("rsft", settings=RSFTSettings(layer=1, epochs=1, steps=2, learning_rate=3e-3))
    asking: dict[str, Any] = {"progress": False, "max_new_tokens": 2}
    run_protocol(method, PLANS["single update"](), model, tokenizer, folder / "run", **asking)
    key = unsealed(json.loads((folder / "run" / "run.json").read_text()), "run.json")
    (folder / "run" / "key").write_text(json.dumps(key))
    passed = Judged("update", "1", False, ("x = 1",), (Verdict(True, "passed", ""),))
    CodeResult("a model", (passed,)).save(folder / "code", [1], {})
    of_losses = {"margin": Curvature(3.0, 2.0, -3.0, 0.1, 40, True, 0.5)}
    save_curvature(folder / "curvature.json", {"LoRA SFT": of_losses, "CoRSA": of_losses})
    kept = KeptScores()
    kept.add("arc_easy", {"limit": 3}, {}, {"arc_easy": {"acc,none": 0.5, "acc_stderr,none": 0.1}})
    kept.write(folder / "harness.json")
    write_descriptions({"one": "of France", "two": "of Italy"}, folder / "descriptions.json")


def write_settings(folder: Path) -> None:
    for name, kind in SETTINGS_OF.items():
        names = kind.presets()
        chosen = kind.load(names[0]) if names else kind()
        atomic_write_text(folder / "settings" / f"{name}.json", json.dumps(chosen.as_dict()))
    for name in HPARAMS:
        packaged = yaml.safe_load(Path(hparams_path(name, hparams_names(name)[0])).read_text(encoding="utf-8"))
        atomic_write_text(folder / "hparams" / f"{name}.json", json.dumps(packaged))


def contents(good: bytes, draw: random.Random) -> bytes:
    """Something like the content of a file."""
    if draw.random() < 0.15:
        return draw.choice([*RAW, good[: draw.randrange(len(good))], draw.getrandbits(320).to_bytes(40, "big")])
    length = 8 + int.from_bytes(good[:8], "little")
    if good[8:9] == b"{" and length < len(good):  # of tensors: a header and their bytes
        header = json.loads(good[8:length])
        spoiled_ones([header], draw)
        written = json.dumps(header).encode()
        return len(written).to_bytes(8, "little") + written + good[length:]
    is_one = good.count(b"\n") < 2 or good[:2] in (b"{\n", b"[\n")
    read = [json.loads(good)] if is_one else [json.loads(line) for line in good.splitlines()]
    for value in read:
        if isinstance(value, dict):
            value.pop("checksum", None)  # which would know of the damage before the reader does
    spoiled_ones(read, draw)
    return "".join(json.dumps(value) + "\n" for value in read).encode()


def spoiled_ones(values: list[Any], draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 4))):
        spoil(draw.choice(values), draw)


@contextlib.contextmanager
def spoiling(name: str, files: Path) -> Iterator[tuple[Callable[[bytes], bool], bytes]]:
    """What reads another content of a file, and says whether it was read or refused; and the good content."""
    place, read = READERS[name]
    file = files / place
    good, manifest = file.read_bytes(), file.parent / MANIFEST
    guarded = manifest.read_bytes() if manifest.exists() else None

    def is_read(content: bytes) -> bool:
        file.write_bytes(content)
        try:
            read(file)
        except CorsaError:
            return False
        return True

    assert is_read(good)
    try:
        if name != "manifest":
            manifest.unlink(missing_ok=True)  # which would know of the damage before the reader does
        yield is_read, good
    finally:
        file.write_bytes(good)
        if guarded is not None:
            manifest.write_bytes(guarded)


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_read_or_refused(name: str, files: Path) -> None:
    draw, refused = random.Random(name), 0
    with spoiling(name, files) as (is_read, good):
        for number in range(COUNT + len(RAW)):
            refused += not is_read(RAW[number] if number < len(RAW) else contents(good, draw))
    assert refused


@pytest.mark.parametrize("name", READERS)
def test_so_it_is_whatever_hypothesis_thinks_of(name: str, files: Path) -> None:
    found = set()
    with spoiling(name, files) as (is_read, good):

        @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(draw=st.randoms())
        def spoil_it(draw: random.Random) -> None:
            found.add(is_read(contents(good, draw)))

        spoil_it()
    assert False in found


@settings(max_examples=50, deadline=None)
@example("~0")
@given(
    st.text() | st.text("0123456789-,.=:_kMG!&*[]{} \n") | st.sampled_from(["0-99999999999", "9" * 400, "[" * 2_000])
)
def test_any_word_of_a_command_is_a_value_or_refused(text: str) -> None:
    for parse in (
        parse_layers,
        parse_tokens,
        parse_device_map,
        parse_max_memory,
        lambda text: parse_numbers(text, "--x"),
    ):
        try:
            parse(text)
        except SettingError:
            continue
    with contextlib.suppress(ValueError):
        yaml_value(text)
