"""What messages, help texts and docstrings tell a user to type is there to be typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer

from corsa_plugins.cli.app import build_app

ROOT = Path(__file__).parents[2]

each_package = pytest.mark.parametrize(
    "package", ["corsa_plugins", "trl_ext", "easyedit_ext", "mergekit_ext", "lm_eval_ext"]
)

_COMMAND = re.compile(r"(?<![\w=/.-])corsa +(?P<name>[a-z][a-z-]*)(?P<rest>[^`;)\n]*)")
_OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_MODULE = re.compile(r"python -m (?P<name>[A-Za-z_]\w*(?:\.\w+)*)")
_SENTENCE = re.compile(r"[.:,](?=\s|$)")


def texts(code: str) -> Iterator[str]:
    """Every string of a module, docstrings and messages alike; what is filled in is an X."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each ``corsa NAME`` with the options behind it, as far as the command goes."""
    for found in _COMMAND.finditer(text.replace("\\\n", " ")):
        # In a sentence the command ends with it; a value may have a point or a comma inside.
        yield found["name"], _OPTION.findall(_SENTENCE.split(found["rest"])[0])


def strings_of(package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        for text in texts(path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT), text


@cache
def options_of(name: str) -> frozenset[str] | None:
    """The options of a command, ``None`` if there is no such command."""
    command = typer.main.get_command(build_app([name])).commands.get(name)  # type: ignore[attr-defined]
    if name == "train":  # TRL reads them
        pytest.importorskip("trl")
        from trl_ext.arguments import make_parser
        from trl_ext.launching import LAUNCH_OPTIONS

        settings = {option for action in make_parser()._actions for option in action.option_strings}
        return frozenset({"--config", "--accelerate_config", *settings, *(f"--{name}" for name in LAUNCH_OPTIONS)})
    if name == "merge":  # mergekit reads them
        pytest.importorskip("mergekit")
        from mergekit_ext.merge_command import merge_command

        command = merge_command
    return None if command is None else _click_options(command)


def _click_options(command: click.Command) -> frozenset[str]:
    return frozenset(name for option in command.params for name in (*option.opts, *option.secondary_opts)) | {"--help"}


def test_commands_are_found_wherever_they_are_named() -> None:
    code = '''
"""See ``corsa edit --state S``, or corsa stats.

  corsa convert \\\\
      a.json b.jsonl --format zsre  # --this is not one
"""
raise ValueError(f"{path} is old: begin anew (corsa stats --fresh) or write corsa evaluate -m M. Use --quiet.")
'''
    found = [command for text in texts(code) for command in commands_in(text)]
    assert ("edit", ["--state"]) in found
    assert ("stats", []) in found
    assert ("stats", ["--fresh"]) in found
    assert ("evaluate", ["-m"]) in found
    assert next(options for name, options in found if name == "convert")[:1] == ["--format"]
    assert options_of("no-such-command") is None
    assert "--fresh" in (options_of("stats") or ())


@each_package
def test_a_command_that_a_text_names_is_there_with_the_options_it_names(package: str) -> None:
    wrong, count = [], 0
    for path, text in strings_of(package):
        for name, options in commands_in(text):
            known = options_of(name)
            count += 1
            wrong += [f"{path}: corsa {name}"] if known is None else []
            wrong += [f"{path}: corsa {name} {option}" for option in options if option not in (known or ())]
    assert not wrong
    assert count, "no command is named: this test tests nothing"


@each_package
def test_a_module_that_a_text_says_to_run_is_there(package: str) -> None:
    named = {(path, found["name"]) for path, text in strings_of(package) for found in _MODULE.finditer(text)}
    assert not [(path, name) for path, name in named if find_spec(name) is None]
