"""What every method of the editor has: batches and sequences, states to go on from, reverts in any order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, EditState, collect_statistics
from corsa_plugins.alphaedit.auto.choose import start_settings
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.family.blue import BluePlusSettings, BlueSettings
from corsa_plugins.methods.family.memit import MemitSettings
from corsa_plugins.methods.family.prune import PruneSettings
from corsa_plugins.methods.family.rect import RectSettings
from corsa_plugins.methods.family.settings import FamilySettings
from corsa_plugins.methods.registry import method_spec, method_specs
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, Bench

NAMES = [spec.name for spec in method_specs() if spec.reversible]
GIVEN = replace(QUICK, search=None)
"""As they are found for a model: each method takes of them what is not its own."""


def editor_of(name: str, bench: Bench, state: EditState | None = None) -> AlphaEditor:
    method: Any = method_spec(name)(statistics=bench.statistics, settings=GIVEN)
    return AlphaEditor(bench.model, bench.tokenizer, bench.statistics, method.settings, state=state)


@pytest.mark.parametrize("name", NAMES)
def test_batches_come_and_go_in_any_order_and_a_state_is_taken_up_again(
    gpt2_bench: Bench, name: str, tmp_path: Path
) -> None:
    start, other = gpt2_bench.weights(), gpt2_bench.copy()
    editor = editor_of(name, gpt2_bench)
    editor.edit(REQUESTS[:2], answers=False)
    first = gpt2_bench.weights()
    assert not gpt2_bench.holds(start)
    editor.state.save(tmp_path / "one")
    editor.edit(LATER[:1], answers=False)
    second = gpt2_bench.weights()
    assert not gpt2_bench.holds(first)
    # another process goes on from the saved state, and comes to the same bits
    state = EditState.load(tmp_path / "one")
    resumed = editor_of(name, other, state)
    resumed.apply()
    assert other.holds(first)
    assert state.batches[0].settings == editor.settings
    resumed.edit(LATER[:1], answers=False)
    assert other.holds(second)
    # the later one first, and the earlier one first
    resumed.revert("2")
    assert other.holds(first)
    editor.revert("1")
    alone = gpt2_bench.weights()
    assert not gpt2_bench.holds(second)
    assert not gpt2_bench.holds(start)
    editor.state.save(tmp_path / "alone")
    for bench, one in ((other, resumed), (gpt2_bench, editor)):
        one.revert_all()
        assert bench.holds(start)
    again = editor_of(name, other, EditState.load(tmp_path / "alone"))
    again.apply()
    assert other.holds(alone)


@pytest.mark.parametrize("name", NAMES)
def test_a_session_of_a_protocol(gpt2_bench: Bench, name: str, tmp_path: Path) -> None:
    method: Any = method_spec(name)(statistics=gpt2_bench.statistics, settings=GIVEN)
    assert method.describe()["settings"]["layers"]
    start = gpt2_bench.weights()
    session = method.start(gpt2_bench.model, gpt2_bench.tokenizer, seed=0)
    (tmp_path / "0").mkdir()
    session.update(REQUESTS[:1], tmp_path / "0")
    made = gpt2_bench.weights()
    session.close()
    assert gpt2_bench.holds(start)
    again = method.start(gpt2_bench.model, gpt2_bench.tokenizer, seed=0)
    again.restore(tmp_path / "0")
    assert gpt2_bench.holds(made)
    again.close()


@pytest.mark.parametrize("name", NAMES)
def test_published_settings_are_the_methods_own(name: str) -> None:
    kind = method_spec(name).settings_class()
    for preset in kind.presets():
        settings = kind.load(preset)
        if hasattr(kind, "of"):
            plain = kind.of(settings)
            assert type(plain) is AlphaEditSettings
            assert kind.of(plain) == plain, "going on from edits of its own changes nothing"
            assert {**settings.as_dict(), **{"layers": None}} == {**plain.as_dict(), **{"layers": None}}


@pytest.mark.parametrize("kind", [BlueSettings, BluePlusSettings])
def test_blue_edits_the_first_and_the_last_of_the_layers_of_another_method(kind: type[FamilySettings]) -> None:
    chosen = start_settings((3, 4, 5, 6))
    assert kind.of(chosen).layers == (3, 6)
    assert kind.of(chosen).residuals == "own"
    assert kind.of(replace(chosen, layers=(3, 4))).layers == (3, 4)
    assert kind.of(replace(chosen, layers=(3,))).layers == (3,)


@pytest.mark.parametrize("kind", [BlueSettings, BluePlusSettings])
def test_a_layer_between_those_is_refused_in_blues_own_settings(kind: type[FamilySettings], tmp_path: Path) -> None:
    message = r"layers is \(3, 4, 6\): BLUE edits the first and the last one: \[3, 6\]"
    with pytest.raises(SettingError, match=message):
        kind(layers=(3, 4, 6))
    (tmp_path / "blue.yaml").write_text("layers: [3, 4, 6]\n", encoding="utf-8")
    with pytest.raises(SettingError, match=message):
        kind.load(tmp_path / "blue.yaml")
    with pytest.raises(SettingError, match=message):  # as corsa edit --layers does
        replace(kind.load("testbed"), layers=(3, 4, 6))


def test_statistics_that_a_method_cannot_use_are_refused_before_anything_is_done(gpt2_bench: Bench) -> None:
    same = ["Anna Berg was born in Oslo."] * 100
    few = collect_statistics(gpt2_bench.model, gpt2_bench.tokenizer, same, (0, 1), n_tokens=500, pack=False)
    bench, start = replace(gpt2_bench, statistics=few), gpt2_bench.weights()
    method: Any = method_spec("memit")(statistics=few, settings=GIVEN)
    with pytest.raises(SettingError, match=r"layer 0: in \d+ of 48 directions the statistics hold no keys"):
        method.start(bench.model, bench.tokenizer, seed=0)
    with pytest.raises(SettingError, match=r"more text"):
        editor_of("memit", bench).edit(REQUESTS)
    assert gpt2_bench.holds(start)


@pytest.mark.parametrize(("kind", "stop"), [(MemitSettings, 0.1), (RectSettings, 0.02), (PruneSettings, 0.02)])
def test_what_takes_some_of_an_update_away_gets_values_that_are_sure(kind: type[FamilySettings], stop: float) -> None:
    chosen = start_settings((0,))
    earlier = replace(chosen, values=replace(chosen.values, stop_loss=0.1))
    assert kind.of(earlier).values.stop_loss == stop
    published = replace(chosen, values=replace(chosen.values, stop_loss=0.05))
    assert kind.of(published).values.stop_loss == 0.05
