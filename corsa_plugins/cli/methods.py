"""``--method`` and what belongs to it on the command line: settings, statistics and options of the method's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from corsa_plugins.cli.terminal import show
from corsa_plugins.errors import SettingError
from corsa_plugins.parsing import yaml_value

if TYPE_CHECKING:
    from rich.table import Table

    from corsa_plugins.alphaedit.auto import Trial
    from corsa_plugins.methods.spec import Method, MethodSpec

__all__ = [
    "check_diagnose", "check_edit", "list_methods", "make_methods", "method_table", "own_options", "plain_settings",
    "said_to_stay", "show_trial",
]  # fmt: skip


def make_methods(
    names: Sequence[str], settings: Sequence[str], options: Sequence[str], statistics: Path | None
) -> dict[str, Method]:
    """Methods as ``corsa protocol`` names them.

    Args:
        names: Of ``--method``.
        settings: Of ``--settings``: ``METHOD=FILE`` or ``METHOD=PRESET``.
        options: Of ``--option``: ``METHOD.NAME=VALUE``.
        statistics: A folder of ``corsa stats``, for the methods that need it.

    Raises:
        SettingError: Something does not fit; the message names the option of the command line.
        MissingExtraError: A method needs a framework that is not installed.
    """
    from corsa_plugins.methods.registry import method_spec

    if len(set(names)) != len(names):
        raise SettingError(f"--method {', '.join(names)}: name each method once")
    specs = {name: method_spec(name) for name in names}
    sources: dict[str, str] = {}
    for given in settings:
        name, equals, source = given.partition("=")
        if not equals or name not in specs:
            raise SettingError(f"--settings {given}: write METHOD=FILE.yaml, METHOD being one of {', '.join(names)}")
        sources[name] = source
    own: dict[str, list[str]] = {name: [] for name in names}
    for given in options:
        place, equals, value = given.partition("=")
        name, _, option = place.rpartition(".")
        if not equals or not name:
            raise SettingError(f"--option {given}: write METHOD.NAME=VALUE, METHOD being one of {', '.join(names)}")
        if name not in specs:
            raise SettingError(f"--option {given}: it is for {name}, which is not among the methods")
        own[name].append(f"{option}={value}")
    for name, spec in specs.items():
        if spec.needs_statistics and statistics is None:
            raise SettingError(f"{name} needs --statistics: a folder written by corsa stats")
        if spec.needs_settings and name not in sources:
            raise SettingError(f"{name} needs --settings {name}=PRESET, or a YAML file, with the layers to edit")
    common: dict[str, Any] = {}
    if any(spec.needs_statistics for spec in specs.values()):
        from corsa_plugins.alphaedit import KeyStatistics

        common["statistics"] = KeyStatistics.load(str(statistics))
    methods = {}
    for name, spec in specs.items():
        arguments = own_options(spec, own[name]) | (common if spec.needs_statistics else {})
        if name in sources:
            arguments["settings"] = sources[name]
        try:
            methods[name] = spec(**arguments)
        except SettingError as error:
            where = f"--settings {name}={sources[name]}: " if name in sources else ""
            raise SettingError(f"{where}{error}") from None
    return methods


def check_edit(
    spec: MethodSpec, requests: Path | None, statistics: Path | None, of_batches: Mapping[str, Any], output: Path
) -> None:
    """Refuse what ``corsa edit`` cannot do, before hours of work and not after them.

    Args:
        spec: Of ``--method``.
        requests, statistics, output: As given.
        of_batches: By the name of its option, what is for edits that are batches and can be taken out again.

    Raises:
        SettingError: The message names the option of the command line.
    """
    given = [option for option, value in of_batches.items() if value]
    if given and not spec.reversible:
        raise SettingError(
            f"{', '.join(f'--{option}' for option in given)}: not for {spec.name}, which changes the "
            f"{' and the '.join(spec.changes)} for good, in one piece; leave it out, or edit with alphaedit+"
        )
    state, revert = of_batches["state"], of_batches["revert"]
    if not requests and not (spec.reversible and revert):
        others = ", or --state and --revert to take edits back" if spec.reversible else ""
        raise SettingError(f"nothing to do: give --requests to edit{others}")
    if requests and spec.needs_statistics and not statistics:
        raise SettingError("--requests needs --statistics: collect them once for the model with corsa stats")
    if revert and not state:
        raise SettingError("--revert needs --state: the folder that corsa edit wrote")
    if of_batches["name"] == "all":
        raise SettingError("name is 'all', which --revert takes for every batch: choose another name")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingError(f"{output} exists and is not an empty folder: name a new one")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SettingError(f"{output} cannot be made: {parent} is no folder that can be written to; name another one")


def check_diagnose(spec: MethodSpec) -> None:
    """Refuse a method of which ``corsa diagnose`` has nothing to say.

    Args:
        spec: Of ``--method``.

    Raises:
        SettingError: It is none of the editor's.
    """
    if spec.reversible:
        return
    from corsa_plugins.methods.registry import method_specs

    why = "keeps its edits beside the model" if spec.changes == ("store",) else "is trained"
    others = ", ".join(sorted(other.name for other in method_specs() if other.reversible))
    raise SettingError(
        f"--method {spec.name}: corsa diagnose goes by the keys that closed-form edits are made at, and {spec.name} "
        f"{why}: name one of {others}"
    )


def said_to_stay(spec: MethodSpec, model: str) -> str:
    """That edits cannot be taken back, in a line, where they are in the weights for good; else nothing.

    Args:
        spec: Of ``--method``.
        model: Of ``--model``.
    """
    if spec.reversible or "weights" not in spec.changes:
        return ""
    return (
        f"{spec.name} changes the weights for good: in what is written these edits cannot be reverted, alone or "
        f"together; {model} itself stays as it is"
    )


def own_options(spec: MethodSpec, given: Sequence[str]) -> dict[str, Any]:
    """A method's own options from texts ``NAME=VALUE``, the value as in a YAML file.

    Raises:
        SettingError: The method has no such option, or the text is no such pair.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in spec.options:
            takes = f"its options are: {', '.join(spec.options)}" if spec.options else "it has none beside its settings"
            raise SettingError(f"--option {text}: {spec.name} takes no option {name!r}; {takes}")
        try:
            options[name] = yaml_value(value)
        except ValueError as error:
            raise SettingError(f"--option {text}: {value!r} is no value as YAML has it: {error}") from None
        if isinstance(options[name], str):  # YAML takes 1e-5 for a text
            try:
                options[name] = float(value)
            except ValueError:
                continue
    return options


def plain_settings(method: Method) -> dict[str, Any]:
    """A method's settings as plain data; empty where it has none, or keeps them to itself."""
    settings = getattr(method, "settings", None)
    return asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {}


def show_trial(trial: Trial) -> None:
    """A line about an edit on trial, to standard error."""
    typer.echo(
        f"on trial: {trial.what}: new answers {100 * trial.efficacy:.0f} %, reworded {100 * trial.generality:.0f} %, "
        f"watched facts {100 * trial.kept:.0f} % kept",
        err=True,
    )


def list_methods(wanted: bool) -> None:
    """What ``--list`` does: the table, and no more."""
    if wanted:
        show(method_table(), folded=False)
        raise typer.Exit


def method_table() -> Table:
    """A row for each method: what it does, where it comes from, what it needs, and what it takes; no line breaks."""
    from rich.table import Table

    from corsa_plugins.methods.registry import method_specs, unusable_methods

    table = Table(title="Editing methods; corsa demo runs those with a *", title_style="")
    for heading in ("method", "what it does", "source", "needs", "presets", "options"):
        table.add_column(heading, overflow="fold")
    for spec in method_specs():
        table.add_row(
            f"{spec.name}{' *' if spec.demo else ''}",
            f"{spec.title}: {spec.summary}",
            spec.source,
            ", ".join(spec.needs),
            "" if spec.missing else ", ".join(spec.presets()),
            ", ".join(spec.options),
        )
    for name, reason in unusable_methods().items():
        table.add_row(name, f"(not usable) {' '.join(reason.split())}")
    return table
