"""What README, docs/ and CONTRIBUTING tell a reader to do can be done: links, commands, names and Python."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import rich
import torch
import typer.main
import yaml

from corsa_plugins.bench.evaluation.metrics import METRICS
from corsa_plugins.cli.app import build_app
from corsa_plugins.data.code_problems import CodeProblem
from corsa_plugins.data.formats.registry import GROUP as FORMATS
from corsa_plugins.report.sections import SECTIONS
from corsa_plugins.requests import EditRequest, write_requests
from tests.fixtures.adapters import Edited
from tests.fixtures.alphaedit import LATER, REQUESTS, Bench
from tests.support.merges import REQUESTS as MERGED
from tests.support.merges import UNTOUCHED

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
GROUPS = {*OURS, FORMATS, METRICS.group, SECTIONS.group}
PACKAGES = "corsa_plugins|trl_ext|easyedit_ext|mergekit_ext|lm_eval_ext"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_its_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def command_lines(document: Path) -> Iterator[list[str]]:
    """The words of each `corsa` command in the document's shell blocks and in its running text."""
    text = document.read_text(encoding="utf-8")
    shell = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    inline = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for line in [*shell.splitlines(), *re.findall(r"`(corsa [^`]+)`", inline)]:
        if line.startswith("corsa "):
            yield shlex.split(line, comments=True)[1:]


def the_command(name: str) -> click.Command | None:
    group = typer.main.get_command(build_app([name]))
    return group.commands.get(name)  # type: ignore[attr-defined,no-any-return]


@each_document
def test_its_commands_exist_and_have_the_options_it_names(document: Path) -> None:
    for words in command_lines(document):
        if words[0].startswith("-"):
            continue
        command = the_command(words[0])
        assert command is not None, words
        if command.context_settings.get("ignore_unknown_options"):
            continue  # it reads its own arguments, as `corsa train` and `corsa merge` do
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help"}, words


@each_document
def test_its_python_compiles_and_what_it_imports_is_there(document: Path) -> None:
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and importlib.util.find_spec(node.module.split(".")[0]):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@each_document
def test_the_tests_it_names_are_there(document: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text(encoding="utf-8")):
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", source, re.M), f"{file}::{name}"


def test_every_promise_of_reliability_names_a_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert len(rows) > 15
    assert not [row for row in rows if "`tests/" not in row.split("|")[2]]


@each_document
def test_its_data_is_well_formed(document: Path) -> None:
    for block in blocks(document, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
    for block in blocks(document, "json"):
        record = json.loads(block)
        (CodeProblem if "task_id" in record else EditRequest)(**record)


@each_document
def test_the_files_and_names_it_names_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    files = re.findall(rf"`((?:{PACKAGES}|tests|examples|docs)/[\w./-]*)`", text)
    assert not [name for name in files if not (ROOT / name).exists()]
    for dotted in re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)[`(]", text):
        module, _, name = dotted.rpartition(".")
        if dotted in GROUPS:
            continue
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), dotted


def test_the_page_on_editing_does_what_it_says(
    llama_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    llama_bench.statistics.save("stats")
    before = llama_bench.weights()
    (block,) = blocks(ROOT / "docs" / "editing.md", "python")
    # A model of a few blocks: other layers, and values as in the other tests.
    block = block.replace("AlphaEditSettings(layers=(4, 5, 6, 7, 8))", "settings")
    namespace = {
        "model": llama_bench.model,
        "tokenizer": llama_bench.tokenizer,
        "requests": REQUESTS,
        "more": LATER,
        "settings": llama_bench.settings,
    }
    exec(compile(block, "editing.md", "exec"), namespace)
    editor: Any = namespace["editor"]
    assert [batch.name for batch in editor.state.batches] == ["tuesday"]
    assert (tmp_path / "edits" / "state.json").exists()
    editor.revert("tuesday")
    assert all(torch.equal(value, before[name]) for name, value in llama_bench.weights().items())


def test_the_page_on_serving_writes_an_adapter_and_takes_it_back(
    edited: Edited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edited.state.save("edits")
    before = edited.base.weights()
    block, _ = blocks(ROOT / "docs" / "serving.md", "python")
    names: dict[str, Any] = {"model": edited.base.model, "tokenizer": edited.base.tokenizer}
    exec(compile(block, "serving.md", "exec"), names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert edited.base.holds(before)


def test_the_pages_on_requests_and_evaluation_do_what_they_say(
    llama_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_requests("facts.jsonl", REQUESTS)
    (block,) = blocks(ROOT / "docs" / "formats.md", "python")
    block = block.replace("conversational=True", "conversational=False")  # this model has no chat template
    namespace = {"model": llama_bench.model, "tokenizer": llama_bench.tokenizer}
    exec(compile(block, "formats.md", "exec"), namespace)
    rows: Any = namespace["rows"]
    assert rows
    assert {"prompt", "chosen", "rejected"} <= set(rows[0])
    block, one_more_metric = blocks(ROOT / "docs" / "evaluation.md", "python")
    model = llama_bench.model
    known = [EditRequest(prompt="The capital of Spain is", target_new="Madrid")]
    names: dict[str, Any] = {"base": model, "edited": model, "tokenizer": llama_bench.tokenizer, "rich": rich}
    names |= {"requests": REQUESTS, "facts_that_should_stay": known}
    exec(compile(block, "evaluation.md", "exec"), names)
    assert "efficacy" in capsys.readouterr().out.lower()
    exec(compile(one_more_metric, "evaluation.md", "exec"), names)
    after: Any = names["after"]
    assert {names["brevity"].value(record) for record in after.records} <= {True, False}


def test_the_page_on_mergekit_sweeps_in_python(
    shaken: Any, taught_llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks(ROOT / "docs" / "mergekit.md", "python") if "sweep" in block]
    # A model shaken until it forgets: what is retained is another matter.
    block = block.replace("floor=0.99", "floor=0")
    namespace = {"base": taught_llama, "edited": shaken, "tokenizer": tiny_tokenizer, "requests": MERGED}
    namespace["facts_that_should_stay"] = UNTOUCHED
    exec(compile(block, "mergekit.md", "exec"), namespace)
    assert len(namespace["points"]) == 2 + 2 * 3
    assert namespace["recipe"]["merge_method"] == "scaled_pruned_delta"


def test_readme_is_short_and_leads_to_every_page_of_the_docs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, rest = readme.split("## For a user of TRL")
    assert rest.count("\n") <= first.count("\n")
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\((docs/[\w-]+\.md)", readme))
