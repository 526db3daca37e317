"""`corsa merge-sweep`: a grid measured, the best point with its recipe, and what cannot be asked."""

from __future__ import annotations

import importlib.util

import pytest
import yaml

from corsa_plugins.bench.merge_sweep import read_sweep
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_probes, write_requests
from tests.support.edited import stored
from tests.support.merges import REQUESTS, UNTOUCHED
from tests.support.python import FRAMEWORKS, blocked


@pytest.fixture
def corsa(capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        return exit.value.code, capsys.readouterr()

    return run


@pytest.fixture
def arguments(taught_llama, shaken, tiny_tokenizer, tmp_path):
    for name, model in (("base", taught_llama), ("edited", shaken)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    write_requests(tmp_path / "r.jsonl", REQUESTS)
    write_probes(tmp_path / "u.jsonl", UNTOUCHED)
    return ["merge-sweep", "--base", tmp_path / "base", "--edited", tmp_path / "edited", "-r", tmp_path / "r.jsonl",
            "--untouched", tmp_path / "u.jsonl", "-o", tmp_path / "sweep", "--weights", "0.01, 0.5", "--densities",
            "0.2", "--device", "cpu", "--quiet"]  # fmt: skip


def test_a_sweep_its_plot_and_its_recipe(arguments, corsa, tmp_path):
    code, captured = corsa(*arguments)
    assert code == 0, captured
    assert "best: weight" in captured.out
    assert (tmp_path / "sweep" / "tradeoff.png").exists()
    _, points = read_sweep(tmp_path / "sweep" / "sweep.jsonl")
    assert [(p.weight, p.density) for p in points] == [(0, 0), (0.01, 0.2), (0.5, 0.2), (1, 1)]
    recipe = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert (recipe["base_model"], recipe["models"][0]["model"]) == (str(tmp_path / "base"), str(tmp_path / "edited"))
    if importlib.util.find_spec("mergekit"):
        code, captured = corsa("merge", tmp_path / "sweep" / "best.yaml", tmp_path / "merged", "--quiet")
        assert code == 0, captured
        assert stored(tmp_path / "merged").keys() == stored(tmp_path / "base").keys()


def test_what_corsa_edit_wrote_is_an_edited_model(arguments, corsa, tmp_path):
    (tmp_path / "edit" / "state").mkdir(parents=True)
    (tmp_path / "edit" / "state" / "state.json").write_text("{}")
    at = arguments.index("--edited") + 1
    given = [*arguments[:at], tmp_path / "edit", *arguments[at + 1 :], "--no-plot"]
    code, captured = corsa(*given)
    assert (code, "holds the edits alone: the whole edited model is needed" in captured.err) == (2, True)
    (tmp_path / "edited").rename(tmp_path / "edit" / "model")
    code, captured = corsa(*given)
    assert code == 0, captured
    recipe = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert recipe["models"][0]["model"] == str(tmp_path / "edit" / "model")  # what mergekit can load


def test_wrong_usage(arguments, corsa):
    code, captured = corsa(*arguments, "--no-plot", "--weights", "much")
    assert (code, captured.err.startswith("error: --weights is 'much'")) == (2, True)
    code, captured = corsa(*arguments[:3], *arguments[5:], "--no-plot")
    assert (code, "Give --edited or --adapter" in captured.err) == (2, True)


def test_no_framework_is_needed(arguments, tmp_path):
    command = [str(argument) for argument in arguments] + ["--no-plot"]
    code = (
        f"from corsa_plugins.cli.app import main\ntry: main({command!r})\nexcept SystemExit as exit: print(exit.code)"
    )
    assert blocked(FRAMEWORKS, code).splitlines()[-1] == "0"
    assert (tmp_path / "sweep" / "best.yaml").exists()
