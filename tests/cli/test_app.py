"""The console script: help, commands of its own and of extensions, and errors a user can act on."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

from corsa_plugins import __version__
from corsa_plugins.cli.app import COMMANDS, GROUP, main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.testbed import load_testbed
from tests.support.python import error_of


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """Installs a distribution with commands, as pip would, and gives its folder."""
    folder = tmp_path / "site"
    info = folder / "corsa_test_extension-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corsa-test-extension\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nraw = corsa_test_extension:raw\ntyped = corsa_test_extension:typed\n"
        "app = corsa_test_extension:app\nabsent = corsa_test_absent:run\nlate = corsa_test_extension:late\n"
        "broken = corsa_test_broken:run\nconvert = corsa_test_broken:run\n"
    )
    (folder / "corsa_test_absent.py").write_text(
        "from corsa_plugins.errors import require\nrequire('corsa_no_such_framework', 'trl', what='corsa absent')\n"
    )
    (folder / "corsa_test_broken.py").write_text("import corsa_no_such_dependency_of_nobody\n")
    (folder / "corsa_test_extension.py").write_text(
        textwrap.dedent(
            """
            import typer
            from corsa_plugins.cli.plugin import passthrough
            from corsa_plugins.errors import CorsaError, require

            app = typer.Typer(help="An app of its own.")

            @app.command()
            def one():
                typer.echo("one ran")

            @app.command()
            def two():
                raise CorsaError("two is broken; use one")

            @passthrough
            def raw(argv):
                '''Takes everything as it comes.'''
                typer.echo(repr(argv))
                return 3 if "--fail" in argv else None

            def typed(count: int = 1):
                '''Has a number.'''
                if count < 0:
                    raise ArithmeticError("a defect of the program")
                if count == 0:
                    raise CorsaError("count is 0: give at least 1")
                typer.echo(f"counted {count}")

            @passthrough
            def late(argv):
                require("corsa_no_such_framework", "mergekit", what="corsa late")
            """
        )
    )
    monkeypatch.syspath_prepend(folder)
    return folder


class TestHelp:
    def test_the_front_page_has_examples_and_exit_codes(self, corsa):
        result = corsa("--help")
        assert result.exit_code == 0
        for expected in ("EXAMPLES", "corsa evaluate --model", "EXIT CODES", "evaluate", "testbed"):
            assert expected in result.output

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, corsa, command):
        result = corsa(command, "--help")
        assert result.exit_code == 0
        sections = ["EXAMPLES", *(["FILES"] if "--output" in result.output else []), "EXIT CODES"]
        for section in sections:
            assert f"\n  {section}\n" in result.output

    def test_the_commands_are_listed_in_the_order_of_the_table(self, corsa):
        output = corsa("--help").output
        places = [output.index(f"\n  {command} ") for command in COMMANDS]
        assert places == sorted(places)

    def test_version(self, corsa):
        assert corsa("--version").output.strip() == f"corsa-plugins {__version__}"

    def test_an_unknown_command_is_wrong_usage(self, corsa):
        result = corsa("evaluat")
        assert result.exit_code == 2
        assert "No such command 'evaluat'" in result.stderr


class TestExtensions:
    def test_their_commands_are_listed_with_their_help(self, corsa, extension):
        output = corsa("--help").output
        for line in ("raw", "Takes everything as it comes.", "typed", "Has a number.", "An app of its own."):
            assert line in output
        assert "(not usable) corsa absent needs corsa_no_such_framework" in " ".join(output.split())

    def test_they_cannot_take_the_name_of_a_command_of_ours(self, corsa, extension):
        assert "counterfact" in corsa("convert", "--list").output
        assert "Convert a published data set" in corsa("--help").output

    def test_a_passthrough_command_gets_all_its_arguments(self, corsa, extension):
        arguments = ["--config", "run.yaml", "--help", "positional", "--learning_rate=1e-4", "-x", "--flag"]
        result = corsa("raw", *arguments)
        assert result.output.strip() == repr(arguments)
        assert result.exit_code == 0
        assert corsa("raw", "--fail").exit_code == 3

    def test_functions_and_apps_work_as_typer_commands(self, corsa, extension):
        assert corsa("typed", "--count", "4").output.strip() == "counted 4"
        assert corsa("app", "one").output.strip() == "one ran"

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("absent", "corsa absent needs corsa_no_such_framework: pip install 'corsa-plugins[trl]'"),
            ("late", "corsa late needs corsa_no_such_framework: pip install 'corsa-plugins[mergekit]'"),
        ],
    )
    def test_a_missing_extra_is_one_clear_line(self, corsa, extension, command, message):
        result = corsa(command, "--help")
        assert result.exit_code == 2
        assert result.stderr == f"error: {message}\n"

    def test_their_errors_are_messages_and_their_defects_are_not_hidden(self, corsa, extension):
        result = corsa("typed", "--count", "0")
        assert (result.exit_code, result.stderr) == (2, "error: count is 0: give at least 1\n")
        with pytest.raises(ArithmeticError):
            main(["typed", "--count", "-1"])

    def test_a_broken_extension_does_not_take_the_others_down(self, corsa, extension):
        assert corsa("typed").exit_code == 0
        result = corsa("--help")
        assert result.exit_code == 0
        assert "(not usable) No module named" in result.output
        with pytest.raises(ModuleNotFoundError, match="corsa_no_such_dependency_of_nobody"):
            main(["broken"])

    def test_errors_in_the_commands_of_an_app_are_messages_too(self, corsa, extension):
        result = corsa("app", "two")
        assert (result.exit_code, result.stderr) == (2, "error: two is broken; use one\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x" * 300), "File name too long"),
        (("--output", "loop"), "File exists|symbolic links"),
        (("--label", "\udcff"), "is not UTF-8, and so nothing could be written that names it"),
    ],
)
def test_what_no_file_can_be_called_is_one_message(corsa, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    write_requests(tmp_path / "r.jsonl", [EditRequest(prompt="a", target_new="b")])
    result = corsa("evaluate", "--model", load_testbed().path, "--requests", "r.jsonl", "--quiet", *arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("given", [["--output", ""], ["--output="], ["-o", ""], ["x", "--out", "", "--quiet"]])
def test_an_empty_value_is_not_the_current_folder(corsa, tmp_path, monkeypatch, command, given):
    monkeypatch.chdir(tmp_path)
    result = corsa(command, *given)
    assert result.exit_code == 2
    name = next(argument for argument in given if argument.startswith("-")).rstrip("=")
    assert result.stderr.startswith(f"error: {name} is empty, as of a variable that is not set")
    assert not list(tmp_path.iterdir())


def test_an_empty_argument_is_named_by_its_place(corsa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.json").write_text('[{"prompt": "a", "target_new": "b"}]')
    result = corsa("convert", "facts.json", "")
    assert (result.exit_code, result.stderr.startswith("error: argument 3 is empty")) == (2, True)


def test_the_script_exits_with_the_code_and_writes_errors_to_stderr(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "corsa_plugins.cli", "evaluate", "--model", "m", "--requests", tmp_path / "no.jsonl"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert error_of(done.stderr).startswith(f"error: {tmp_path / 'no.jsonl'}: no such file")
