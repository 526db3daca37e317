"""What a demo is run on: what an atlas found, with nothing set for it, as well as the testbed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from corsa_plugins.alphaedit import KeyStatistics
from corsa_plugins.atlas import Asking, Draw, make_atlas, read_facts
from corsa_plugins.demo.run import default_methods, demo_methods, run_demo
from corsa_plugins.demo.worlds import AtlasWorld, Rounds
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.methods.registry import method_spec
from tests.fixtures.atlas import KNOWN


@pytest.fixture
def world(tmp_path: Path, model: Path, every_fact) -> AtlasWorld:
    asking = Asking(least=3, device="cpu", dtype="float32")
    make_atlas(model, tmp_path / "atlas", facts=every_fact, draw=Draw(2, 1, untouched=3), asking=asking)
    return AtlasWorld(tmp_path / "atlas", neighbours=1, tokens=400)


def test_what_is_known_is_read_again_as_facts(world: AtlasWorld) -> None:
    read = read_facts(world.folder / "known.jsonl")
    assert [(fact.subject, fact.answer) for fact in read] == [(fact.subject, fact.answer) for fact in KNOWN]


def test_rounds_are_drawn_of_it_by_seed_and_are_statements(world: AtlasWorld) -> None:
    plan = world.plan(Rounds(2, untouched=3))
    assert [len(part.requests) for part in plan.sets] == [2, 2]
    assert len(plan.untouched) == 3
    known = {fact.written(fact.statements[0]): fact for fact in KNOWN}
    for part in plan.sets:
        for request in part.requests:
            fact = known[request.prompt]
            assert request.target_old == fact.answer
            assert request.paraphrases == tuple(fact.written(form) for form in fact.statements[1:])
            assert len(request.neighborhood) <= 1
    assert plan == world.plan(Rounds(2, untouched=3))
    assert plan != world.plan(Rounds(2, seed=1, untouched=3))
    with pytest.raises(SettingError, match="2 rounds of 4 edits need 8 facts"):
        world.plan(Rounds(4))


def test_every_method_of_the_demo_can_be_set_up_without_settings(world: AtlasWorld) -> None:
    assert set(default_methods()) <= set(demo_methods(world))
    for name in default_methods():
        spec = method_spec(name)
        if not spec.needs_statistics:
            assert spec(**world.options(spec)).name == spec.title


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.slow
def test_a_run_shows_the_model_and_collects_of_its_own_text(world: AtlasWorld, tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, width=160)
    run = run_demo(tmp_path / "out", Rounds(2, untouched=3), world=world, methods=("alphaedit",), console=console)
    shown = text.getvalue()
    assert f"{world.folder / 'model'}: a 0 M-parameter llama" in shown
    assert "Round 1 changes 2 facts that it knows" in shown
    assert KeyStatistics.load(tmp_path / "out" / "statistics").layers == (0,)
    page = run.page.read_text(encoding="utf-8")
    assert f"corsa demo --atlas {world.folder} --size 2 --seed 0 --method alphaedit" in page
    assert run.results[0].summary().updates[0].right_after["efficacy"].mean is not None


def test_a_folder_that_is_no_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorsaError, match=r"known\.jsonl: no such file"):
        run_demo(tmp_path / "out", Rounds(2), world=AtlasWorld(tmp_path), console=Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()
