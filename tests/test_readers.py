"""Whatever is in a file, its reader reads it, or says what is wrong by an error that is meant for people.

50 spoiled ones of every file; `CORSA_RECORDS=100000` makes it ten thousand. Data sets have a test of their own
(tests/data/formats/test_many_records.py), and so have journals and files of requests.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
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
from corsa_plugins.bench.evaluation import evaluate, load_evaluation, save_evaluation
from corsa_plugins.bench.merge_sweep import read_sweep
from corsa_plugins.cli.values import parse_device_map, parse_layers, parse_max_memory, parse_numbers, parse_tokens
from corsa_plugins.data.code_problems import read_problems, write_problems
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.manifest import MANIFEST, check_folder
from corsa_plugins.parsing import yaml_value
from tests.conftest import DOCUMENTS
from tests.fixtures.alphaedit import REQUESTS
from tests.support.code import UPDATES
from tests.support.spoiled import spoil

SETTINGS = AlphaEditSettings(
    layers=(0,),
    null_space=NullSpaceRule("share", 0.4),
    values=ValueSettings(steps=3, lr=0.5, lr_unit="relative"),
    ridge=0.1,
    n_contexts=0,
)
COUNT = int(os.environ.get("CORSA_RECORDS", "500")) // 10
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


def recipe(path: Path) -> None:
    pytest.importorskip("mergekit")
    from mergekit_ext.merging import read_recipe

    read_recipe(path)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "manifest": ("state/manifest.json", lambda file: check_folder(file.parent)),
    "edit state": ("state/state.json", lambda file: EditState.load(file.parent)),
    "statistics": ("stats/statistics.json", lambda file: KeyStatistics.load(file.parent)),
    "adapter": ("adapter/adapter_config.json", lambda file: read_adapter(file.parent)),
    "exported edits": ("adapter/corsa.json", lambda file: read_adapter(file.parent)),
    "summary": ("results/summary.json", lambda file: load_evaluation(file.parent)),
    "answers": ("results/records.jsonl", lambda file: load_evaluation(file.parent)),
    "settings": ("settings.yaml", AlphaEditSettings.load),
    "recipe": ("recipe.yaml", recipe),
    "facts": ("facts.jsonl", read_facts),
    "problems": ("problems.jsonl", read_problems),
    "sweep": ("sweep.jsonl", read_sweep),
    "texts": ("texts.jsonl", lambda file: list(read_texts(file))),
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
    (folder / "settings.yaml").write_text(json.dumps(editor.settings.as_dict()))
    model_of = {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 1}]}}
    whole = {"merge_method": "scaled_pruned_delta", "base_model": "a", "models": [model_of], "dtype": "float16"}
    (folder / "recipe.yaml").write_text(json.dumps(whole))
    for name, lines in (("facts", [FACT]), ("sweep", SWEEP), ("texts", [{"text": "a"}, {"text": "b"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_problems(folder / "problems.jsonl", UPDATES[:1])
    return folder


def contents(good: bytes, draw: random.Random) -> bytes:
    """Something like the content of a file."""
    if draw.random() < 0.15:
        return draw.choice([*RAW, good[: draw.randrange(len(good))], draw.randbytes(40)])
    read = [json.loads(good)] if good.startswith(b"{\n") else [json.loads(line) for line in good.splitlines()]
    for _ in range(draw.choice((1, 1, 2, 4))):
        spoil(draw.choice(read), draw)
    return "".join(json.dumps(value) + "\n" for value in read).encode()


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_read_or_refused(name: str, files: Path) -> None:
    place, read = READERS[name]
    file, draw = files / place, random.Random(name)
    good, manifest = file.read_bytes(), file.parent / MANIFEST
    guarded = manifest.read_bytes() if manifest.exists() else None
    read(file)
    refused = 0
    try:
        if name != "manifest":
            manifest.unlink(missing_ok=True)  # which would know of the damage before the reader does
        for number in range(COUNT + len(RAW)):
            file.write_bytes(RAW[number] if number < len(RAW) else contents(good, draw))
            try:
                read(file)
            except CorsaError:
                refused += 1
    finally:
        file.write_bytes(good)
        if guarded is not None:
            manifest.write_bytes(guarded)
    assert refused


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
