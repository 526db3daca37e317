"""Core methods through the protocols: what is evaluated, what is left behind, and what a stop costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.evaluation import Evaluation, evaluate, load_evaluation
from corsa_plugins.bench.evaluation.checkpoint import CheckpointError
from corsa_plugins.bench.protocols import Method, ProtocolError, UpdatePlan, run, run_protocol, temporal_stream
from tests.fixtures.protocols import CORE, FailsOnce
from tests.support.flips import flip
from tests.support.small_plans import BORN, FRANCE, FRANCE_AGAIN, ITALY, UNTOUCHED

Make = Callable[[str], Method]
QUICK: dict[str, Any] = {"max_new_tokens": 5, "progress": False}


def same_weights(model: LlamaForCausalLM, other: LlamaForCausalLM) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def three_rounds() -> UpdatePlan:
    return temporal_stream([[FRANCE, ITALY], [FRANCE_AGAIN], [BORN]], untouched=UNTOUCHED)


@pytest.mark.parametrize("name", CORE)
def test_each_method_through_each_protocol(
    name: str, plan: UpdatePlan, make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = copy.deepcopy(taught_llama)
    result = run_protocol(make(name), plan, taught_llama, tiny_tokenizer, **QUICK)
    assert same_weights(taught_llama, before)
    wanted = {(moment, plan.sets[n - 1].name) for moment, numbers in enumerate(plan.evaluated) for n in numbers}
    wanted |= {(moment, "untouched") for moment in range(len(plan.evaluated)) if plan.untouched}
    assert set(result.evaluations) == wanted
    for number, one in enumerate(plan.sets, start=1):
        then, now = result.at(0, one.name), result.at(number, one.name)
        assert [record.edit.prompt for record in now.records] == [request.prompt for request in one.requests]
        # the updates add up: each is for its own requests, and was made before they were asked again
        gained = [b.edit.log_prob_new - a.edit.log_prob_new for a, b in zip(then.records, now.records, strict=True)]
        assert all(gain > 0 for gain in gained)
    assert len(result.seconds) == len(plan.sets)
    assert len(result.summary().updates) == len(plan.sets)


def test_a_moment_is_the_model_of_that_moment(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The evaluations of a run are those of the same updates made by hand."""
    method, plan = make("rsft"), three_rounds()
    result = run_protocol(method, plan, taught_llama, tiny_tokenizer, tmp_path / "run", **QUICK)
    session = method.start(taught_llama, tiny_tokenizer, seed=0)
    for moment, numbers in enumerate(plan.evaluated):
        if moment:
            (folder := tmp_path / str(moment)).mkdir()
            session.update(plan.sets[moment - 1].requests, folder)
        for number in numbers:
            one = plan.sets[number - 1]
            asked = evaluate(taught_llama, tiny_tokenizer, one.requests, max_new_tokens=5, progress=False)
            assert asked.records == result.at(moment, one.name).records
    saved = load_evaluation(tmp_path / "run" / "evaluations" / "after-003" / "round-1")
    assert saved == result.at(3, "round 1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"][0]["standing"] == 1


@pytest.mark.parametrize("name", ["alphaedit+", "rsft-merged"])
def test_a_stopped_run_goes_on_where_it_was(
    name: str,
    make: Make,
    taught_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, plan = copy.deepcopy(taught_llama), three_rounds()
    whole = run_protocol(make(name), plan, taught_llama, tiny_tokenizer, **QUICK)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_protocol(FailsOnce(make(name), 2), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert same_weights(taught_llama, before)
    assert [path.name for path in sorted((tmp_path / "updates").iterdir())] == ["001-round-1"]

    (tmp_path / "updates" / ".002-round-2.killed.part").mkdir()  # as a killed process leaves it
    asked: list[str] = []

    def watched(*arguments: Any, **settings: Any) -> Evaluation:
        asked.append(settings["label"])
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(run, "evaluate", watched)
    going_on = FailsOnce(make(name), None)
    result = run_protocol(going_on, plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert [list(requests) for requests in going_on.made] == [[FRANCE_AGAIN], [BORN]]
    assert result.evaluations == whole.evaluations
    assert len(list((tmp_path / "updates").iterdir())) == 3
    assert not any("before" in label or "after update 1" in label for label in asked)
    assert same_weights(taught_llama, before)

    asked.clear()
    again = FailsOnce(make(name), None)
    assert run_protocol(again, plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK) == result
    assert (asked, again.made) == ([], [])


def test_what_holds_before_any_update_is_asked_once_for_all_methods(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan, shared = three_rounds(), tmp_path / "before"
    alone = run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, **QUICK)
    first = run_protocol(make("alphaedit+"), plan, taught_llama, tiny_tokenizer, before=shared, **QUICK)
    files = {path: path.read_bytes() for path in shared.glob("*.jsonl")}
    assert len(files) == 4  # three sets and what is untouched
    generate, asked = taught_llama.generate, []
    taught_llama.generate = lambda *args, **kwargs: asked.append(1) or generate(*args, **kwargs)  # type: ignore[method-assign]
    run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, **QUICK)
    n, _ = len(asked), asked.clear()
    second = run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, before=shared, **QUICK)
    assert len(asked) < n
    assert second.evaluations == alone.evaluations
    assert first.at(0, "round 1").records == second.at(0, "round 1").records
    assert {path: path.read_bytes() for path in shared.glob("*.jsonl")} == files

    with torch.no_grad():
        taught_llama.lm_head.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="other model"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, before=shared, **QUICK)


def test_a_folder_of_another_run_is_refused(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plan = temporal_stream([[FRANCE]])
    run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    for other, message in (
        ({"seed": 1}, "other seed"),
        ({"method": make("rsft-merged")}, "other method"),
        ({"plan": temporal_stream([[ITALY]])}, "other sets"),
        ({"max_new_tokens": 6}, "other max_new_tokens"),
    ):
        arguments = {"method": make("rsft"), "plan": plan, **QUICK, **other}
        with pytest.raises(ProtocolError, match=message):
            run_protocol(model=taught_llama, tokenizer=tiny_tokenizer, output=tmp_path, **arguments)
    with torch.no_grad():
        taught_llama.lm_head.weight[0, 0] += 1
    with pytest.raises(ProtocolError, match="other model"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_tokens'"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, max_tokens=5)  # type: ignore[call-arg]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path / "file", **QUICK)


def test_two_runs_at_once_in_a_folder_are_one_too_many(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    method, other, refused = make("rsft"), copy.deepcopy(taught_llama), []

    def second(share: float, what: str) -> None:
        with pytest.raises(ProtocolError, match="another run is at work there"):
            run_protocol(method, three_rounds(), other, tiny_tokenizer, tmp_path, **QUICK)
        refused.append(what)

    watched = {**QUICK, "progress": second}
    first = run_protocol(method, three_rounds(), taught_llama, tiny_tokenizer, tmp_path, **watched)
    assert refused
    assert run_protocol(method, three_rounds(), other, tiny_tokenizer, tmp_path, **QUICK) == first


def test_an_update_that_was_tampered_with_is_not_put_back(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before, plan = copy.deepcopy(taught_llama), temporal_stream([[FRANCE], [ITALY]])
    with pytest.raises(RuntimeError):
        run_protocol(FailsOnce(make("rsft"), 2), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    path = tmp_path / "updates" / "001-round-1" / "weights.safetensors"
    weights = load_file(path)
    flip(path, 8 * (path.stat().st_size - 4))  # one bit, too small for the sums that know a model
    with pytest.raises(ProtocolError, match=r"weights\.safetensors is not the file that was written.*002-round-2"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    (path.parent / "manifest.json").unlink()  # as of a run from before there were manifests
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, path)
    with pytest.raises(ProtocolError, match=r"cannot be put back as it was.*001-round-1, .*002-round-2"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    assert same_weights(taught_llama, before)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ProtocolError, match=r"001-round-1 is damaged .*Delete .*002-round-2"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)
    (path.parent / "update.json").write_text("{")
    with pytest.raises(ProtocolError, match=r"update\.json is damaged"):
        run_protocol(make("rsft"), plan, taught_llama, tiny_tokenizer, tmp_path, **QUICK)


def test_measures_are_taken_at_both_ends_and_kept(
    make: Make, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    seen = []

    def total(model: Any) -> dict[str, float]:
        seen.append(float(model.model.layers[1].mlp.down_proj.weight.detach().double().sum()))
        return {"sum": seen[-1]}

    arguments: dict[str, Any] = {"output": tmp_path, "measures": {"the sum": total}, **QUICK}
    result = run_protocol(make("rsft"), three_rounds(), taught_llama, tiny_tokenizer, **arguments)
    assert result.measured == {(0, "the sum"): {"sum": seen[0]}, (3, "the sum"): {"sum": seen[1]}}
    assert seen[0] != seen[1]
    assert run_protocol(make("rsft"), three_rounds(), taught_llama, tiny_tokenizer, **arguments) == result
    assert len(seen) == 2
    more = {**arguments, "measures": {"another": total}}
    again = run_protocol(make("rsft"), three_rounds(), taught_llama, tiny_tokenizer, **more)
    assert [value["sum"] for value in again.measured.values()] == seen[:2]  # the updates are put back for it
