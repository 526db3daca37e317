"""``corsa report``: what each command writes is recognised, and its numbers are on the page."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit import collect_statistics
from corsa_plugins.bench.ability import ability_summary
from corsa_plugins.bench.curvature import Curvature, CurvatureError, curvature, load_curvature, save_curvature
from corsa_plugins.bench.evaluation import load_evaluation, save_evaluation
from corsa_plugins.bench.merge_sweep import read_sweep
from corsa_plugins.bench.protocols.shares import ForgettingPoint, write_forgetting
from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.report.sections.ability import harness_scores
from corsa_plugins.report.sources import SourceError, read_sources
from corsa_plugins.testbed import load_testbed, texts_of_testbed


def corsa(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which facts of the testbed were edited, diagnosed and evaluated."""
    home = tmp_path_factory.mktemp("made")
    bed = load_testbed()
    plan = bed.world.edit_rounds(n_rounds=1, size=4, seed=0, untouched=6)
    write_requests(home / "r.jsonl", plan.rounds[0])
    write_requests(home / "u.jsonl", plan.untouched)
    texts = texts_of_testbed(bed, 60)
    collect_statistics(bed.model, bed.tokenizer, texts, (0,), n_tokens=10**6, sample_size=64).save(home / "stats")
    same = ("--model", bed.path, "--requests", home / "r.jsonl", "--quiet")
    editing = ("--statistics", home / "stats", "--settings", "testbed")
    assert corsa("edit", *same, *editing, "--output", home / "edited") == 0
    assert corsa("diagnose", *same, *editing, "--output", home / "foresight") == 0
    asked = ("--untouched", home / "u.jsonl", "--edited", home / "edited", "--output", home / "results")
    assert corsa("evaluate", *same, *asked, "--label", "after") == 0
    return home


def page(tmp_path: Path, *paths: Any, options: tuple[Any, ...] = ()) -> str:
    assert corsa("report", *paths, "-o", tmp_path / "page.html", *options) == 0
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def section(source: str, heading: str) -> str:
    """The words of a section, tags taken out."""
    (found,) = re.findall(rf"<h2>{heading}</h2>\n(.*?)</section>", source, flags=re.DOTALL)
    found = re.sub(r"<svg.*?</svg>", " ", found, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found)).split())


def headings(source: str) -> list[str]:
    return [heading for heading in re.findall(r"<h2>(.*?)</h2>", source) if heading != "What was asked"]


def test_evaluations_are_columns_in_the_order_given(made: Path, tmp_path: Path) -> None:
    before, after = load_evaluation(made / "results" / "baseline"), load_evaluation(made / "results")
    source = page(tmp_path, f"base={made / 'results' / 'baseline'}", made / "results")
    assert headings(source) == ["Results", "Requests and answers"]
    results = section(source, "Results")
    assert results.startswith("base after change")
    means = [f"{100 * one.summary()['efficacy'].mean:.1f}" for one in (before, after)]
    assert re.search(rf"Efficacy, % ↑ {means[0]} \[.*?\] {means[1]} \[", results)
    assert means[0] != means[1]
    assert section(page(tmp_path, made / "results", made / "results" / "baseline"), "Results").startswith("after data")
    assert "Locality" in results
    later = section(page(tmp_path, made / "results" / "baseline", made / "results", options=("--later",)), "Results")
    assert "Forgetting" in later
    assert "Locality" not in later
    answers = section(source, "Requests and answers")
    for record in after.records:
        assert record.edit.prompt in answers
    # twice the same name is told apart, and a file of the folder is the folder
    twice = page(tmp_path, made / "results", made / "results" / "summary.json", options=("--title", "A <title>"))
    assert section(twice, "Results").startswith("after after (2)")
    assert "<h1>A &lt;title&gt;</h1>" in twice
    assert str(made / "results") in section(twice, "What was asked")


def test_evaluations_of_other_requests_keep_their_answers(made: Path, tmp_path: Path) -> None:
    before, after = load_evaluation(made / "results" / "baseline"), load_evaluation(made / "results")
    save_evaluation(replace(before, label="part", records=before.records[:1], untouched=()), tmp_path / "part")
    source = page(tmp_path, made / "results" / "baseline", tmp_path / "part", made / "results")
    answers = section(source, "Requests and answers")
    # lines of an answer: what the model said, tabs between its parts
    for evaluation in (before, after):
        for record in evaluation.records:
            assert f"{evaluation.label}: {' '.join(record.edit.output.split())}" in answers
    assert f"part: {' '.join(before.records[0].edit.output.split())}" in answers
    assert source.count("<li ") == len(after.records) + len(after.untouched) + 1


def test_conflicts_of_edits_and_of_diagnoses(made: Path, tmp_path: Path) -> None:
    rows = json.loads((made / "edited" / "report.json").read_text())["requests"]
    for given, name in ((made / "edited", "edited"), (f"Monday={made / 'edited' / 'report.json'}", "Monday")):
        found = section(page(tmp_path, given), "Conflicts")
        for key, heading in (("preserved_conflict", "with preserved knowledge"), ("inconsistency", "Inconsistency")):
            values = sorted(row[key] for row in rows)
            said = f"{name} {len(rows)} {values[len(rows) // 2]:.4g} {values[-1]:.4g}"
            assert said in found[found.index(heading) :]
        assert "with prior edits" not in found  # there were none
    lines = (made / "foresight" / "diagnosis.jsonl").read_text().splitlines()
    values = sorted(json.loads(line)["preserved_conflict"] for line in lines)
    both = section(page(tmp_path, made / "edited", made / "foresight"), "Conflicts")
    assert f"foresight 4 {values[2]:.4g} {values[-1]:.4g}" in both
    assert "edited 4 " in both
    (tmp_path / "one.jsonl").write_text(lines[0] + "\n")  # a single line is JSON as well
    assert f"{json.loads(lines[0])['preserved_conflict']:.4g}" in section(
        page(tmp_path, tmp_path / "one.jsonl"), "Conflicts"
    )


def test_a_sweep_with_its_best_point(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    code = corsa(
        "merge-sweep", "--base", load_testbed().path, "--edited", made / "edited" / "model", "--requests",
        made / "r.jsonl", "--untouched", made / "u.jsonl", "--weights", "1", "--densities", "0.5", "--floor", "0",
        "--output", tmp_path / "sweep", "--no-plot", "--quiet",
    )  # fmt: skip
    assert code == 0
    _, points = read_sweep(tmp_path / "sweep" / "sweep.jsonl")
    assert [(point.weight, point.density) for point in points] == [(0, 0), (1, 0.5), (1, 1)]
    source = page(tmp_path, tmp_path / "sweep")
    found = section(source, "Scale and density")
    for point in points:
        share = f"{100 * point.metrics['generality']:.4g} {100 * point.retained:.4g}"
        assert f"{point.weight:.4g} {point.density:.4g} {share}" in found
    assert found.count(" best") == 1 + found.count("the best merge")
    assert ">base<" in source
    assert "sweep: generality" in found
    # a sweep that is still running, its last line cut short, and no recipe yet
    running = tmp_path / "running.jsonl"
    running.write_text((tmp_path / "sweep" / "sweep.jsonl").read_text()[:-9])
    found = section(page(tmp_path, f"A={running}", f"B={tmp_path / 'sweep'}"), "Scale and density")
    assert "A: generality" in found
    assert "B: generality" in found
    assert found[: found.index("B: ")].count("Each line is a density") == 1


def test_training_histories_by_run(
    tmp_path: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset

    from trl_ext import CoRSAConfig, CoRSATrainer

    settings = CoRSAConfig(
        str(tmp_path / "run"), max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=2, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True, gradient_accumulation_steps=1,
        warmup_steps=0, learning_rate=0.01,
    )  # fmt: skip
    facts = [
        {"prompt": "The capital of France is", "chosen": " Oslo", "rejected": " Paris"},
        {"prompt": "The capital of Italy is", "chosen": " Madrid", "rejected": " Rome"},
    ]
    rows = Dataset.from_list(facts)
    trainer = CoRSATrainer(taught_llama, args=settings, train_dataset=rows, processing_class=tiny_tokenizer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "logps/new" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4]
    (tmp_path / "history.json").write_text(json.dumps(logged[:2]))
    run = tmp_path / "run"
    last = page(tmp_path, run)
    for given, entries, name in (
        (run, logged, "run"),
        (run / "checkpoint-2", logged[:2], "run"),
        (f"CoRSA={run / 'checkpoint-4' / 'trainer_state.json'}", logged, "CoRSA"),
        (tmp_path / "history.json", logged[:2], tmp_path.name),
    ):
        found = section(page(tmp_path, given), "During training")
        rows_of = [f"{e['step']} {e['logps/new']:.4g} {e['logps/old']:.4g} {e['margin']:.4g}" for e in entries]
        assert found.startswith(name)
        assert found.endswith("margin " + " ".join(rows_of))
    assert headings(last) == ["During training"]


def test_forgetting_over_shares(tmp_path: Path) -> None:
    points = [
        ForgettingPoint(share, share / 3, share / 4, share / 2, method)
        for method in ("CoRSA", "LoRA SFT")
        for share in (0.5, 1.0)
    ]
    write_forgetting(points, tmp_path / "forgetting.json")
    assert read_sources([str(tmp_path)]).parts["forgetting"] == points
    found = section(page(tmp_path, tmp_path), "Forgetting")
    for point in points:
        assert f"{point.method} {100 * point.share:.4g} {100 * point.forgetting:.4g}" in found
    (tmp_path / "forgetting.json").write_text(json.dumps([{"share": 1, "forgetting": 0}]))
    assert "Mine 100 0" in section(page(tmp_path, f"Mine={tmp_path}"), "Forgetting")


def test_curvatures_are_saved_read_and_shown(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    requests = [EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris")]
    weights = [tiny_llama.model.norm.weight]
    found = {"tiny": curvature(tiny_llama, requests, tiny_tokenizer, parameters=weights, max_iterations=4)}
    found["by hand"] = {"margin": Curvature(-2.0, 1.5, -2.0, 1e-3, 7, True)}  # its value is not known
    path = save_curvature(tmp_path / "curvature.json", found)
    written = json.loads(path.read_text())
    assert "torch" in written["versions"]
    about = written["curvature"]["tiny"]["margin"]["about"]
    assert all(about[name] for name in ("model", "tokenizer", "requests", "settings"))
    assert about["seed"] == 0
    path.write_text(path.read_text().replace('"iterations": 7', '"iterations": 8'))
    with pytest.raises(CurvatureError, match=r"curvature\.json is not what was written"):
        load_curvature(path)
    save_curvature(path, found)
    assert str(load_curvature(path)) == str(found)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    shown = section(page(tmp_path, path), "Curvature")
    for label, functions in found.items():
        for of, one in functions.items():
            said = f"{label} {of} {one.largest:.4g} {one.top:.4g} {one.iterations} {'yes' if one.converged else 'no'}"
            assert said in shown
    path.write_text('{"curvature": {"tiny": {"margin": {"largest": 1}}}}')
    with pytest.raises(CurvatureError, match=r"curvature\.json holds no curvatures"):
        load_curvature(path)


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (the extra 'eval' brings it)"
)
def test_general_ability_that_evaluate_kept(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    before = load_evaluation(made / "results" / "baseline")
    answers = [fact.answer for fact in before.untouched]
    rows = [{"q": fact.prompt, "c": answers, "a": place} for place, fact in enumerate(before.untouched)]
    # what the edits are about is told as it was: who takes them misses it
    rows += [{"q": one.edit.prompt, "c": [one.target_new, one.target_old], "a": 1} for one in before.records]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: DIR/data.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: a\n"
        "metric_list: [{metric: acc}]\n".replace("DIR", str(tmp_path))
    )
    results = tmp_path / "results"
    code = corsa(
        "evaluate", "--model", load_testbed().path, "--edited", made / "edited", "--harness", "mine", "--harness-path",
        tmp_path / "tasks", "--output", results, "--label", "after", "--quiet",
    )  # fmt: skip
    assert code == 0
    saved = json.loads((results / "summary.json").read_text())["general_ability"]
    one = saved["change"]["mine"]["acc"]
    assert one["difference"] < 0
    shown = section(page(tmp_path, results), "General ability")
    errors = [saved[which]["mine"]["acc_stderr"] for which in ("baseline_scores", "scores")]
    assert shown.startswith(
        f"data after difference mine, acc {one['before']:.4f} ± {errors[0]:.4f} {one['after']:.4f} ± {errors[1]:.4f} "
        f"{one['difference']:+.4f} ± {one['stderr']:.4f}"
    )
    # the base as a column of its own is the same column; the file alone has no base
    assert section(page(tmp_path, results, results / "baseline"), "General ability") == shown
    alone = section(page(tmp_path, f"Mine={results / 'harness.json'}"), "General ability")
    assert alone.startswith(f"Mine mine, acc {one['after']:.4f} ± {errors[1]:.4f} ")


def test_all_of_it_on_one_page(made: Path, tmp_path: Path) -> None:
    looks = [{"step": step, "logps/new": -3.0 + step, "logps/old": -1.0 - step} for step in range(3)]
    (tmp_path / "history.json").write_text(json.dumps(looks))
    (tmp_path / "forgetting.json").write_text('[{"share": 0.5, "forgetting": 0.25, "method": "CoRSA"}]')
    changes = {"mmlu": {"acc": {"before": 0.5, "after": 0.25, "difference": -0.25, "stderr": 0.03}}}
    (tmp_path / "ability.json").write_text(json.dumps(changes))  # as corsa protocol writes it
    save_curvature(tmp_path / "curvature.json", {"CoRSA": {"margin": Curvature(1.0, 1.0, 0.0, 0.0, 3, True)}})
    source = page(tmp_path, made / "results", made / "edited", tmp_path)
    assert headings(source) == [
        "Results", "During training", "Forgetting", "Conflicts", "Curvature", "General ability", "Requests and answers",
    ]  # fmt: skip
    name = tmp_path.name
    assert f"{name}, before {name}, after difference mmlu, acc 0.5000 0.2500 -0.2500" in section(
        source, "General ability"
    )


def test_the_folder_of_a_protocols_method(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "corsa"
    for number in (1, 2):
        update = run / "updates" / f"00{number}-round_{number}"
        update.mkdir(parents=True)
        (update / "history.json").write_text(json.dumps([{"step": number, "logps/new": -1.0}]))
        shutil.copy(made / "edited" / "report.json", update)
    found = read_sources([str(run)])
    assert [(point.run, point.step) for point in found.parts["history"]] == [
        ("corsa, 001-round_1", 1),
        ("corsa, 002-round_2", 2),
    ]
    assert {conflict.group for conflict in found.parts["conflicts"]} == {"corsa, 001-round_1", "corsa, 002-round_2"}
    shutil.rmtree(run / "updates" / "002-round_2")
    assert [point.run for point in read_sources([f"CoRSA={run}"]).parts["history"]] == ["CoRSA"]


BASE = {"t": {"acc": 0.5, "acc_stderr": 0.03}}
OTHER = {"t": {"acc": 0.75, "acc_stderr": 0.04}}


class TestLabelsOfScores:
    def test_other_scores_of_the_same_name_get_another_column(self) -> None:
        saved = ability_summary(OTHER, BASE, "model")
        found = harness_scores(saved, "model")
        assert [(one.label, one.value, one.baseline) for one in found] == [
            ("model", 0.5, None),
            ("model (2)", 0.75, "model"),
        ]
        again = harness_scores(saved, "model", found)
        assert [(one.label, one.value) for one in again] == [("model", 0.5), ("model (2)", 0.75)]
        third = harness_scores({"scores": {"t": {"acc": 0.1}}}, "model", [*found, *again])
        assert [one.label for one in third] == ["model (3)"]

    def test_a_model_that_changed_nothing_is_not_compared_with_itself(self) -> None:
        found = harness_scores(ability_summary(BASE, BASE, "model"), "model")
        assert [one.label for one in found] == ["model", "model (2)"]

    def test_scores_that_are_no_numbers_survive(self) -> None:
        saved = json.loads(json.dumps(ability_summary({"t": {"ppl": math.inf}}, {"t": {"ppl": 2.0}}, "b")))
        assert [one.value for one in harness_scores(saved, "a")] == [2.0, math.inf]


BROKEN = {
    "nowhere": (None, "nowhere: no such file or folder"),
    "empty.json": ("", "is neither JSON nor JSON Lines"),
    "list.json": ("[]", "is nothing that a report can show"),
    "words.txt": ("Some words.\nAnd more.\n", "is neither JSON nor JSON Lines"),
    "other.json": ('{"a": 1}', "is nothing that a report can show"),
    "bytes.json": (b"\xff\xfe\x00", "is no text"),
    "loss.json": ('[{"step": 1, "loss": 2.0}]', "has no log-probabilities of new answers"),
    "header.jsonl": ('{"sweep": 1}\n', "has no points yet"),
    "sweep.jsonl": ('{"sweep": 1}\n{"weight": 1}\n', "holds no results of a sweep"),
    "edit.json": ('{"batch": "1", "requests": [{"prompt": "p"}], "layers": []}', "is damaged: KeyError"),
    "share.json": ('[{"share": "half", "forgetting": 1}]', "is damaged: ValueError"),
    "look.json": ('[{"step": 1, "history/edit/logps/new": null}]', "is damaged: TypeError"),
    "point.jsonl": (
        '{"sweep": 1}\n{"weight": "x", "density": 1, "metrics": {}, "retained": 1, "right": ""}\n',
        "holds no results of a sweep",
    ),
    "deep.json": ("[" * 100_000, "nested too deep"),
    "scores.json": ('{"model": {}, "asked": [{"task": "t", "settings": 1, "scores": 2}]}', "holds no scores"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_understood_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert corsa("report", tmp_path / name, "-o", tmp_path / "page.html") == 2
    said = capsys.readouterr().err
    assert message in said
    assert name in said
    assert said.count("error: ") == 1
    if "nothing that" in message or "neither" in message:
        assert "corsa merge-sweep" in said  # one of those that are understood
    assert not (tmp_path / "page.html").exists()


def test_damaged_folders_and_a_folder_as_the_page(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corsa("report", made / "stats", "-o", tmp_path / "page.html") == 2
    assert "stats holds nothing that a report can show" in capsys.readouterr().err
    shutil.copytree(made / "results", tmp_path / "results")
    (tmp_path / "results" / "records.jsonl").write_text("{}\n")
    assert corsa("report", tmp_path / "results", "-o", tmp_path / "page.html") == 2
    assert "results holds no evaluation this version can read" in capsys.readouterr().err
    assert corsa("report", made / "results", "-o", tmp_path) == 2
    assert "is a folder: name a file" in capsys.readouterr().err
    again = tmp_path / "again"
    shutil.copytree(made / "results", again)
    summary = json.loads((again / "summary.json").read_text())
    del summary["checksum"]
    (again / "summary.json").write_text(json.dumps({**summary, "general_ability": {"scores": 3}}))
    with pytest.raises(SourceError, match="general_ability cannot be read"):
        read_sources([str(again)])


def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_forgetting([ForgettingPoint(1.0, 0.5)], tmp_path / "forgetting.json")
    content = (tmp_path / "forgetting.json").read_bytes()
    (tmp_path / "link.html").symlink_to(tmp_path / "forgetting.json")
    for output in ("forgetting.json", "link.html"):
        assert corsa("report", tmp_path, "-o", tmp_path / output) == 2
        assert "is one of the files to be read" in capsys.readouterr().err
    assert (tmp_path / "forgetting.json").read_bytes() == content


def test_what_is_no_page_is_not_replaced(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = made / "results" / "summary.json"
    before = summary.read_bytes()
    assert corsa("report", made / "results", "-o", summary) == 2
    assert "summary.json is there, and is no page" in capsys.readouterr().err
    assert summary.read_bytes() == before
    for _ in range(2):  # a page is
        page(tmp_path, made / "results")


def test_a_full_disk_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_forgetting([ForgettingPoint(1.0, 0.5)], tmp_path / "forgetting.json")
    monkeypatch.setattr(os, "fsync", full)
    assert corsa("report", tmp_path, "-o", tmp_path / "page.html") == 2
    assert capsys.readouterr().err == f"error: [Errno 28] No space left on device: '{tmp_path / 'page.html'}'\n"
    assert [path.name for path in tmp_path.iterdir()] == ["forgetting.json"]


def test_a_path_with_an_equals_sign_is_a_path(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "results", tmp_path / "a=b")
    (one,) = read_sources([str(tmp_path / "a=b")]).evaluations
    assert one == load_evaluation(made / "results")
    with pytest.raises(SourceError, match="'before=' has no path"):
        read_sources(["before="])
    with pytest.raises(SourceError, match="of 'before=gone'"):
        read_sources(["before=gone"])
    (other,) = read_sources([f"x={tmp_path / 'a=b'}"]).evaluations
    assert other == replace(one, label="x")
