"""The console script: help, commands of its own and of extensions, and errors a user can act on."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest
import torch

from corsa_plugins import __version__
from corsa_plugins.bench.evaluation import load_evaluation
from corsa_plugins.cli.app import GROUP, main
from corsa_plugins.data.reading import read_probes, read_requests, write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.model import asking as inference


@dataclass
class Result:
    exit_code: int
    output: str
    stderr: str


@pytest.fixture
def corsa(capsys):
    """Runs `corsa` with the given arguments."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(exit.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def world(tmp_path, taught_llama, tiny_tokenizer):
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    requests = [
        EditRequest(prompt="The capital of France is", target_new="Paris", target_old="Rome", case_id=1),
        EditRequest(prompt="The capital of Italy is", target_new="Oslo", target_old="Rome", case_id=2),
    ]
    write_requests(tmp_path / "requests.jsonl", requests)
    write_probes(tmp_path / "untouched.jsonl", [Probe(prompt="The capital of Spain is", answer="Madrid")])
    return tmp_path


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

    @pytest.mark.parametrize("command", ["evaluate", "testbed"])
    def test_every_command_explains_itself(self, corsa, command):
        result = corsa(command, "--help")
        assert result.exit_code == 0
        for section in ("EXAMPLES", "FILES", "EXIT CODES"):
            assert f"\n  {section}\n" in result.output

    def test_version(self, corsa):
        assert corsa("--version").output.strip() == f"corsa-plugins {__version__}"

    def test_an_unknown_command_is_wrong_usage(self, corsa):
        result = corsa("evaluat")
        assert result.exit_code == 2
        assert "No such command 'evaluat'" in result.stderr


class TestEvaluate:
    def test_it_measures_and_writes_what_it_measured(self, corsa, world):
        result = corsa(
            "evaluate", "--model", world / "model", "--requests", world / "requests.jsonl",
            "--untouched", world / "untouched.jsonl", "--output", world / "results", "--label", "taught",
            "--device", "cpu", "--quiet",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        (row,) = [line for line in result.output.splitlines() if "Efficacy, %" in line]
        assert "50.0" in row
        saved = load_evaluation(world / "results")
        assert saved.values("efficacy") == [1, 0]
        assert saved.values("untouched") == [1]
        assert saved.label == "taught"

    def test_an_adapter_is_compared_with_its_own_base(self, corsa, world, taught_llama):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(taught_llama, peft.LoraConfig(r=2, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=1.0)
        model.save_pretrained(world / "adapter")
        arguments = [
            "evaluate", "--model", world / "model", "--adapter", world / "adapter", "--baseline", world / "model",
            "--requests", world / "requests.jsonl", "--output", world / "results", "--device", "cpu", "--quiet",
        ]  # fmt: skip
        result = corsa(*arguments)
        assert result.exit_code == 0, result.output
        before, after = load_evaluation(world / "results" / "baseline"), load_evaluation(world / "results")
        assert (before.label, after.label) == ("model", "adapter")
        assert before.values("efficacy") == [1, 0]
        assert after.values("log_prob_new") != before.values("log_prob_new")
        # results that are there already serve as a baseline too
        again = corsa(*arguments[:6], world / "results" / "baseline", *arguments[7:9], "--device", "cpu", "--quiet")
        assert again.exit_code == 0, again.output
        assert [line for line in again.output.splitlines() if "%" in line] == [
            line for line in result.output.splitlines() if "%" in line
        ]

    def test_an_edited_model_is_compared_with_the_model(self, corsa, world, taught_llama, tiny_tokenizer):
        with torch.no_grad():
            taught_llama.lm_head.weight.mul_(-1)
        taught_llama.save_pretrained(world / "edited")
        tiny_tokenizer.save_pretrained(world / "edited")
        arguments = [
            "evaluate", "--model", world / "model", "--edited", world / "edited", "--requests",
            world / "requests.jsonl", "--untouched", world / "untouched.jsonl", "--device", "cpu", "--quiet",
        ]  # fmt: skip
        result = corsa(*arguments, "--output", world / "results", "--fluency-tokens", "8")
        assert result.exit_code == 0, result.stderr
        summary = json.loads((world / "results" / "summary.json").read_text())
        assert (summary["label"], summary["baseline"]) == ("edited", "model")
        assert summary["change"]["efficacy"]["mean"] == -0.5
        assert summary["two_moments"]["untouched_locality"]["mean"] == 0
        assert summary["settings"]["fluency_tokens"] == 8
        page = (world / "results" / "report.html").read_text()
        assert "The capital of France is" in page
        assert str(world / "edited") in page
        later = corsa(*arguments, "--baseline", world / "results", "--later", "--output", world / "later")
        assert later.exit_code == 0, later.stderr
        assert "Fluency" not in later.stderr
        moments = json.loads((world / "later" / "summary.json").read_text())["two_moments"]
        assert "locality" not in moments
        assert moments["forgetting_edit_prompt"]["mean"] == 0

    def test_an_interrupted_evaluation_goes_on(self, corsa, world, monkeypatch):
        arguments = [
            "evaluate", "--model", world / "model", "--requests", world / "requests.jsonl", "--untouched",
            world / "untouched.jsonl", "--output", world / "results", "--batch-size", "1", "--device", "cpu", "--quiet",
        ]  # fmt: skip
        real, calls = inference.score_targets, []

        def interrupted(model, tokenizer, pairs, **options):
            calls.append(pairs)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(model, tokenizer, pairs, **options)

        monkeypatch.setattr(sys.modules["corsa_plugins.bench.evaluation.evaluate"], "score_targets", interrupted)
        stopped = corsa(*arguments)
        assert (stopped.exit_code, stopped.stderr) == (130, "error: interrupted\n")
        assert not (world / "results" / "summary.json").exists()
        assert (world / "results" / "unfinished.jsonl").exists()
        second = corsa(*arguments)
        assert second.exit_code == 0, second.stderr
        assert calls[2] == calls[1], "what was finished was asked again"
        assert sorted(path.name for path in (world / "results").iterdir()) == [
            "records.jsonl", "report.html", "summary.json", "untouched.jsonl",
        ]  # fmt: skip
        assert load_evaluation(world / "results").values("efficacy") == [1, 0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"--later": ""}, "--later needs --baseline"),
            ({"--edited": "model", "--adapter": "x"}, "--edited and --adapter"),
            ({"--requests": "missing.jsonl"}, "missing.jsonl: no such file"),
            ({"--model": "./nowhere"}, "model ./nowhere: no such folder"),
            ({"--adapter": "./nowhere"}, "adapter ./nowhere: no such folder"),
            ({"--adapter": "model"}, "cannot be put on"),
            ({"--model": "site"}, "no config.json in this folder; name the folder of a saved model"),
            ({"--model": "."}, "no config.json in this folder; did you mean model?"),
            ({"--device": "abacus"}, "device is 'abacus'"),
            ({"--dtype": "float3"}, "dtype is 'float3'"),
            ({"--batch-size": "0"}, "--batch-size"),
            ({"--max-new-tokens": "0"}, "--max-new-tokens"),
            ({"--output": "requests.jsonl"}, "requests.jsonl is a file"),
            ({"--requests": None}, "nothing to evaluate"),
            ({"--chat-template": ""}, "no chat template"),
        ],
    )
    def test_what_the_user_can_mend_is_one_message_and_exit_code_2(self, corsa, world, monkeypatch, change, message):
        if "--adapter" in change:
            pytest.importorskip("peft")
        monkeypatch.chdir(world)
        (world / "site").mkdir()
        options = {"--model": "model", "--requests": "requests.jsonl", "--device": "cpu", "--quiet": "", **change}
        arguments = [part for name, value in options.items() if value is not None for part in (name, value) if part]
        result = corsa("evaluate", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.lower().count("error: ") == 1
        assert "Traceback" not in result.output + result.stderr


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


class TestTestbed:
    def test_rebuilding_needs_a_place(self, corsa):
        result = corsa("testbed", "--rebuild")
        assert result.exit_code == 2
        assert "--rebuild needs --out" in result.stderr


def test_the_script_exits_with_the_code_and_writes_errors_to_stderr(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "corsa_plugins.cli", "evaluate", "--model", "m", "--requests", tmp_path / "no.jsonl"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'no.jsonl'}: no such file")
    assert len(done.stderr.splitlines()) == 1


def test_the_requests_files_of_a_testbed_are_what_evaluate_reads(corsa, tmp_path):
    result = corsa("testbed", "--out", tmp_path / "world")
    assert result.exit_code == 0, result.output
    rounds = [read_requests(tmp_path / "world" / f"round_{number}.jsonl") for number in (1, 2, 3)]
    assert [len(requests) for requests in rounds] == [100, 100, 100]
    assert len(read_probes(tmp_path / "world" / "untouched.jsonl")) == 500
    assert json.loads((tmp_path / "world" / "model" / "config.json").read_text())["model_type"]
