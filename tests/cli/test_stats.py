"""`corsa stats` from the command line."""

from __future__ import annotations

import pytest
import torch
import typer

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.packing import ResumeError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.cli.commands.stats import stats
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.processes import Processes
from tests.conftest import DOCUMENTS
from tests.support import several


@pytest.fixture
def world(tmp_path, tiny_llama, tiny_tokenizer, monkeypatch):
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(text.replace("\n", " ") for text in DOCUMENTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.command()(stats)
    return app(args=[str(argument) for argument in arguments], standalone_mode=False)


ARGUMENTS = [
    "--model", "model", "--text", "text.txt", "--layers", "0-1", "--tokens", "0.8k", "--out", "stats", "--length", "32",
    "--device", "cpu", "--quiet",
]  # fmt: skip


def without(name):
    at = ARGUMENTS.index(name)
    return ARGUMENTS[:at] + ARGUMENTS[at + 2 :]


def test_it_collects_and_shows(world, capsys, tiny_llama):
    run(*ARGUMENTS)
    output = capsys.readouterr().out
    assert "written to stats" in output
    found = KeyStatistics.load("stats")
    found.check(tiny_llama)
    assert (found.layers, found.count(1)) == ((0, 1), 800)
    run("stats")
    shown = capsys.readouterr().out
    assert shown.strip() in output
    (row,) = [line for line in shown.splitlines() if line.replace("│", " ").split()[:1] == ["1"]]
    values = found.eigenvalues(1)
    assert row.replace("│", " ").split()[1:5] == [
        "64",
        "800",
        "800",
        f"{100 * float((values < 0.02).double().mean()):.1f}",
    ]


def test_it_goes_on_where_it_was_or_begins_anew(world, capsys, monkeypatch):
    from corsa_plugins.alphaedit.statistics import checkpoint

    with monkeypatch.context() as patch:
        plain = checkpoint.KeySums.add

        def interrupted(self, keys, position):
            if self.count > 500:
                raise KeyboardInterrupt
            plain(self, keys, position)

        patch.setattr(checkpoint.KeySums, "add", interrupted)
        assert run(*ARGUMENTS) == 130
    with pytest.raises(CorsaError, match="not finished; take them up again"):
        run("stats")
    with pytest.raises(CorsaError, match="seed was 0 and is 1"):
        run(*ARGUMENTS, "--seed", "1")
    run(*ARGUMENTS)
    with pytest.raises(CorsaError, match="holds finished statistics"):
        run(*ARGUMENTS)
    run(*ARGUMENTS, "--fresh", "--seed", "1")
    assert KeyStatistics.load("stats").about["seed"] == 1


@pytest.mark.parametrize("name", ["--model", "--text", "--out"])
def test_what_is_missing_is_said(world, name):
    with pytest.raises(SettingError, match="needs --model, --text or --self and --out"):
        run(*without(name))


def test_without_layers_they_follow_from_the_depth(world, capsys):
    run(*without("--layers"))
    assert "layers 0: where facts are likely" in capsys.readouterr().out
    assert KeyStatistics.load("stats").layers == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "--out", "b"], "goes with no other option"),
        (["nowhere"], "no such folder of statistics"),
        ([*without("--layers"), "--layers", "4;5"], "layers is '4;5'"),
        ([*without("--layers"), "--layers", "7"], "2 blocks"),
        ([*without("--tokens"), "--tokens", "many"], "tokens are 'many'"),
        ([*without("--text"), "--text", "none.txt"], "none.txt: no such file"),
        ([*without("--model"), "--model", "./none"], "no such folder"),
        ([*ARGUMENTS, "--field", "body", "--dtype", "int3"], "dtype is 'int3'"),
    ],
)
def test_what_the_user_can_mend_is_one_error(world, arguments, message):
    with pytest.raises(CorsaError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)


def test_a_typo_does_not_cost_the_loading_of_a_model(world, monkeypatch):
    from corsa_plugins.model import loading

    def never(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_model", never)
    (world / "file").write_text("")
    for change in (["--layers", "x"], ["--tokens", "x"], ["--text", "none.txt"]):
        with pytest.raises(CorsaError):
            run(*without(change[0]), *change)
    with pytest.raises(NotADirectoryError):
        run(*without("--out"), "--out", "file")


def test_its_help_has_the_sections_of_the_others():
    for section in ("EXAMPLES", "FILES", "EXIT CODES"):
        assert f"\n    {section}\n" in stats.__doc__


def test_text_of_the_models_own(world, capsys):
    arguments = [*without("--text"), "--self", "900"]
    run(*arguments)
    assert KeyStatistics.load("stats").count(1) == 900
    sampled = (world / "stats" / "self.jsonl").read_bytes()
    run(*arguments, "--fresh")
    assert (world / "stats" / "self.jsonl").read_bytes() == sampled
    with pytest.raises(SettingError, match="--text and --self: give one of them"):
        run(*ARGUMENTS, "--self", "900")


def test_two_processes_collect_what_one_does(world):
    by_itself = ["--self" if part == "--text" else "300" if part == "text.txt" else part for part in ARGUMENTS]
    for name, arguments in (("read", ARGUMENTS), ("self", by_itself)):
        arguments = [*arguments, "--batch-size", "2", "--sample-size", "20"]
        run(*arguments, "--out", f"one-{name}")
        shared = several.together("corsa_plugins.cli", "stats", *arguments, "--out", f"two-{name}")
        assert shared.returncode == 0, shared.stderr[-3000:]
        assert shared.stdout.count("written to") == 1
        one, two = KeyStatistics.load(f"one-{name}"), KeyStatistics.load(f"two-{name}")
        assert one.about == two.about
        for layer in (0, 1):
            torch.testing.assert_close(two.moment(layer), one.moment(layer), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(two.sample(layer), one.sample(layer), rtol=0, atol=0)


def test_unfinished_work_is_of_one_process(world, tiny_llama, tiny_tokenizer):
    two = Processes(0, 2)
    (world / "stats").mkdir()
    (world / "stats" / "partial.safetensors").write_bytes(b"work")
    with pytest.raises(ResumeError, match="which one process goes on with"):
        collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (0,), n_tokens=100, out="stats", processes=two)
    assert (world / "stats" / "partial.safetensors").read_bytes() == b"work"
