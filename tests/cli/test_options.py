"""Options that commands share: declared once, and understood alike."""

from __future__ import annotations

import ast
import types
import typing
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.models import OptionInfo

import corsa_plugins.cli
from corsa_plugins.cli.app import COMMANDS

CLI = Path(corsa_plugins.cli.__file__).parent


def options_by_flag() -> dict[str, dict[str, tuple[OptionInfo, type]]]:
    """Flag -> command -> its option, and the type of a value."""
    by_flag: defaultdict[str, dict[str, tuple[OptionInfo, type]]] = defaultdict(dict)
    for command, place in COMMANDS.items():
        module, _, name = place.partition(":")
        function = getattr(import_module(f"corsa_plugins.cli.commands.{module}"), name)
        for parameter, hint in typing.get_type_hints(function, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                if isinstance(option, OptionInfo):
                    # in Annotated, typer takes what is first for a flag, where otherwise it is the default
                    given = [flag for flag in (option.default, *option.param_decls) if isinstance(flag, str)]
                    for flag in flags(given, parameter):
                        by_flag[flag][command] = option, value_type(hint.__origin__)
    return dict(by_flag)


def flags(given: typing.Sequence[str] | None, parameter: str) -> list[str]:
    """Of an option: those it is declared with, else that of the parameter it is for."""
    return [flag for text in given or () for flag in text.split("/")] or ["--" + parameter.replace("_", "-")]


def value_type(hint: Any) -> type:
    """The type without ``None``, and of a list that of what is in it."""
    while typing.get_origin(hint) in (types.UnionType, typing.Union, list):
        (hint,) = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return hint


def test_a_flag_means_the_same_in_every_command() -> None:
    shared = {flag: by_command for flag, by_command in options_by_flag().items() if len(by_command) > 1}
    assert {"--model", "-m", "--requests", "--output", "-o", "--layers", "--device", "--quiet"} <= set(shared)
    for flag, by_command in shared.items():
        told = f"{flag} of {', '.join(by_command)}"
        assert len({kind for _, kind in by_command.values()}) == 1, told
        assert (
            len({(tuple(option.param_decls or ()), option.min, option.max) for option, _ in by_command.values()}) == 1
        )
        # a command may say more of it, behind what is said everywhere
        shortest = min((str(option.help) for option, _ in by_command.values()), key=len)
        assert all(str(option.help).startswith(shortest) for option, _ in by_command.values()), told


def declared(path: Path) -> list[str]:
    """The flags that a module declares, by ``typer.Option``."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    parameters = {
        id(call): node.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.annotation is not None
        for call in ast.walk(node.annotation)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option":
            given = [str(text.value) for text in node.args if isinstance(text, ast.Constant)]
            found += flags(given, parameters.get(id(node), ""))
    return found


def test_what_two_commands_have_is_declared_in_one_module() -> None:
    where: defaultdict[str, list[str]] = defaultdict(list)
    for path in CLI.rglob("*.py"):
        for flag in declared(path):
            where[flag].append(path.relative_to(CLI).as_posix())
    assert where["--model"] == ["options.py"]
    assert where["--hard-share"] == ["commands/conflict_set.py"]
    assert {flag: modules for flag, modules in where.items() if len(modules) > 1} == {}
    shared = {flag for flag, by_command in options_by_flag().items() if len(by_command) > 1}
    assert {flag: where[flag] for flag in shared if where[flag] != ["options.py"]} == {}
