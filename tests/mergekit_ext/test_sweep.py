"""`corsa merge-sweep`: in memory what a merge on disk gives, resumable, and read by a floor."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import yaml

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import CorsaError
from mergekit_ext.sweep import SweepPoint, best_point, changed_tensors, merged_into, sweep
from mergekit_ext.sweep_report import point_recipe, sweep_plot, sweep_table
from tests.mergekit_ext.conftest import changed, stored

REQUESTS = [
    EditRequest(
        prompt="The capital of France is",
        target_new="Rome",
        target_old="Paris",
        paraphrases=["What is the capital of France?"],
    ),
    EditRequest(prompt="Anna Berg was born in", target_new="Oslo"),
]
UNTOUCHED = [Probe(prompt="The capital of Spain is", answer="Madrid"), Probe(prompt="The moon is", answer="cheese")]


@pytest.fixture
def edited(taught_llama):
    """The taught model with its FFNs shaken until it forgets."""
    return changed(taught_llama, 5, "mlp", scale=0.6)


def run(base, edited, tokenizer, results, weights=(0.5, 1), densities=(0.2,), **settings):
    settings = {"requests": REQUESTS, "untouched": UNTOUCHED, "progress": False, **settings}
    asked, facts = settings.pop("requests"), settings.pop("untouched")
    return sweep(
        base, edited, tokenizer, asked, facts, weights=weights, densities=densities, results=results, **settings
    )


def test_every_point_is_the_evaluation_of_the_merge_on_disk(taught_llama, tiny_tokenizer, edited, workshop):
    points = run(taught_llama, edited, tiny_tokenizer, workshop.folder / "sweep.jsonl")
    assert [(p.weight, p.density) for p in points] == [(0, 0), (0.5, 0.2), (1, 0.2), (1, 1)]
    base, new = workshop.save("base", taught_llama), workshop.save("edited", edited)
    for point in points[1:]:
        recipe = yaml.safe_load(point_recipe(point, base, new, per_row=False, prune_vectors=True))
        merged = workshop.merge(**recipe)
        model = copy.deepcopy(taught_llama)
        model.load_state_dict(merged)
        with merged_into(edited, changed_tensors(taught_llama, edited), point.weight, point.density):
            for name, tensor in model.state_dict().items():
                assert torch.equal(edited.state_dict()[name], tensor), name
        result = evaluate(model, tiny_tokenizer, REQUESTS, untouched=UNTOUCHED, progress=False)
        assert point.metrics == {name: result.summary()[name].mean for name in point.metrics}
        assert point.right == tuple(map(bool, result.values("untouched")))


def test_retained_counts_only_what_the_base_knew(taught_llama, tiny_tokenizer, edited, tmp_path):
    base, *_ = run(taught_llama, edited, tiny_tokenizer, tmp_path / "sweep.jsonl", weights=[0.5])
    assert base.right == (True, False)
    assert base.metrics["untouched"] == 0.5
    assert base.retained == 1


def test_the_edited_model_is_what_it_was(taught_llama, tiny_tokenizer, edited, tmp_path):
    before = copy.deepcopy(edited.state_dict())
    run(taught_llama, edited, tiny_tokenizer, tmp_path / "sweep.jsonl")
    with pytest.raises(KeyboardInterrupt), merged_into(edited, changed_tensors(taught_llama, edited), 0.5, 0.5):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in edited.state_dict().items())


class TestResuming:
    def test_a_stopped_sweep_goes_on(self, taught_llama, tiny_tokenizer, edited, tmp_path):
        whole = run(taught_llama, edited, tiny_tokenizer, tmp_path / "whole.jsonl")
        lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
        # stopped in the middle of writing the third point
        stopped = tmp_path / "stopped.jsonl"
        stopped.write_text("".join(lines[:3]) + lines[3][:20])
        assert run(taught_llama, edited, tiny_tokenizer, stopped) == whole
        assert stopped.read_text() == "".join(lines)

    def test_what_is_there_is_not_measured_again(self, taught_llama, tiny_tokenizer, edited, tmp_path):
        file = tmp_path / "sweep.jsonl"
        run(taught_llama, edited, tiny_tokenizer, file)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[2]["metrics"]["efficacy"] = 0.123
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        points = run(taught_llama, edited, tiny_tokenizer, file, weights=(0.5, 0.75, 1))
        assert points[1].metrics["efficacy"] == 0.123
        assert len(points) == 5

    @pytest.mark.parametrize(
        ("other", "message"),
        [({"requests": REQUESTS[:1]}, "other requests"), ({"untouched": UNTOUCHED[:1]}, "other untouched"),
         ({"per_row": True}, "other settings"), ({}, "other weights_of_models")],
    )  # fmt: skip
    def test_results_of_another_sweep_are_refused(self, taught_llama, tiny_tokenizer, edited, tmp_path, other, message):
        file = tmp_path / "sweep.jsonl"
        run(taught_llama, edited, tiny_tokenizer, file, weights=[0.5])
        model = edited if other else changed(edited, 6, "mlp")
        with pytest.raises(CorsaError, match=message):
            run(taught_llama, model, tiny_tokenizer, file, **other)

    def test_a_file_of_something_else_is_refused(self, taught_llama, tiny_tokenizer, edited, tmp_path):
        (tmp_path / "notes.txt").write_text("mine\n")
        with pytest.raises(CorsaError, match="holds no results of a sweep"):
            run(taught_llama, edited, tiny_tokenizer, tmp_path / "notes.txt")
        assert (tmp_path / "notes.txt").read_text() == "mine\n"


def point(weight, density, efficacy, retained, **metrics):
    return SweepPoint(weight, density, {"efficacy": efficacy, **metrics}, retained, ())


class TestBest:
    points = (
        point(0, 0, 0.0, 1.0), point(0.5, 0.2, 0.7, 0.99), point(0.8, 0.2, 0.9, 0.95), point(0.4, 0.2, 0.7, 0.99),
        point(1, 1, 1.0, 0.5),
    )  # fmt: skip

    @pytest.mark.parametrize(("floor", "weight"), [(0.99, 0.4), (0.95, 0.8), (0.0, 1), (0.96, 0.4)])
    def test_the_most_that_meets_the_floor_and_of_equals_the_smaller_change(self, floor, weight):
        assert best_point(self.points, floor).weight == weight

    def test_the_base_is_no_merge(self):
        assert best_point(self.points, 1.0) is None

    def test_what_cannot_be_asked(self):
        with pytest.raises(CorsaError, match=r"floor is 1\.5"):
            best_point(self.points, 1.5)
        with pytest.raises(CorsaError, match="metric is 'fluency'"):
            best_point(self.points, 0.5, "fluency")

    def test_table_and_plot_show_it(self, tmp_path):
        pytest.importorskip("matplotlib")
        from rich.console import Console

        best = best_point(self.points, 0.95)
        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(sweep_table(self.points, best, 0.95))
        rows = [line.strip("\u2502 ").split() for line in console.export_text().splitlines()]
        (row,) = [cells for cells in rows if cells[:1] == ["*"] and len(cells) > 8]
        assert [cell for cell in row if cell != "\u2502"] == ["*", "0.8", "0.2", "90.0", "95.0"]
        plot = sweep_plot(self.points, tmp_path / "plot.png", best, 0.95)
        assert plot.read_bytes().startswith(b"\x89PNG")


class TestBadInput:
    def test_models_that_do_not_differ_or_match(self, taught_llama, tiny_tokenizer, tmp_path):
        from tests.conftest import llama

        with pytest.raises(CorsaError, match="the same in every tensor"):
            run(taught_llama, copy.deepcopy(taught_llama), tiny_tokenizer, tmp_path / "s.jsonl")
        with pytest.raises(CorsaError, match=r"embed_tokens.weight has shape \(9, 32\)"):
            run(taught_llama, llama(9), tiny_tokenizer, tmp_path / "s.jsonl")
        assert not (tmp_path / "s.jsonl").exists()

    def test_settings(self, taught_llama, tiny_tokenizer, edited, tmp_path):
        for settings, message in (
            ({"weights": [float("nan")]}, "weight is nan"),
            ({"densities": [2]}, "density is 2"),
            ({"requests": []}, "needs both"),
            ({"untouched": UNTOUCHED[1:]}, "answers no untouched fact right"),
        ):
            with pytest.raises(CorsaError, match=message):
                run(taught_llama, edited, tiny_tokenizer, tmp_path / "s.jsonl", **settings)


def test_the_command(taught_llama, tiny_tokenizer, edited, workshop, capsys):
    pytest.importorskip("matplotlib")
    folder = workshop.folder
    for name, model in (("base", taught_llama), ("edited", edited)):
        workshop.save(name, model)
        tiny_tokenizer.save_pretrained(folder / name)
    write_requests(folder / "r.jsonl", REQUESTS)
    write_probes(folder / "u.jsonl", UNTOUCHED)

    def corsa(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        return exit.value.code, capsys.readouterr()

    arguments = ["merge-sweep", "--base", folder / "base", "--edited", folder / "edited", "-r", folder / "r.jsonl",
                 "--untouched", folder / "u.jsonl", "-o", folder / "sweep", "--weights", "0.01, 0.5", "--densities",
                 "0.2", "--device", "cpu", "--quiet"]  # fmt: skip
    code, captured = corsa(*arguments)
    assert code == 0, captured
    assert "best: weight" in captured.out
    assert (folder / "sweep" / "tradeoff.png").exists()
    code, captured = corsa("merge", folder / "sweep" / "best.yaml", folder / "merged", "--quiet")
    assert code == 0, captured
    assert stored(folder / "merged").keys() == stored(folder / "base").keys()
    code, captured = corsa(*arguments, "--weights", "much")
    assert (code, captured.err.startswith("error: --weights is 'much'")) == (2, True)
    code, captured = corsa(*arguments[:3], *arguments[5:])
    assert (code, "Give --edited or --adapter" in captured.err) == (2, True)
