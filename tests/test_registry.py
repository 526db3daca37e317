"""Named values of ours and of other packages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from corsa_plugins.registry import Registry
from tests.support.packages import write_package


@dataclass(frozen=True)
class Fruit:
    name: str
    colour: str = "green"


OURS = (Fruit("pear"), Fruit("apple"))
SOURCE = """
from tests.test_registry import Fruit

plum, apple, fig, stone = Fruit("plum", "blue"), Fruit("apple", "red"), Fruit("date"), "no fruit"
"""
ENTRY_POINTS = "".join(f"{name} = corsa_test_fruits:{name}\n" for name in ("stone", "plum", "fig", "apple", "broken"))


@pytest.fixture
def fruits(tmp_path: Path) -> Iterator[Registry[Fruit]]:
    write_package(tmp_path, "corsa_test_fruits", SOURCE, f"[corsa_test.fruits]\n{ENTRY_POINTS}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setitem(sys.modules, "tests.test_registry", sys.modules[__name__])
        yield Registry(Fruit, "corsa_test.fruits", OURS)
    sys.modules.pop("corsa_test_fruits", None)


def test_ours_come_first_in_their_order(fruits: Registry[Fruit]) -> None:
    assert list(fruits) == ["pear", "apple", "plum"]
    assert fruits["plum"] == Fruit("plum", "blue")
    assert len(fruits) == 3
    with pytest.raises(KeyError):
        fruits["fig"]


def test_what_cannot_be_used_hides_nothing_and_is_explained(
    fruits: Registry[Fruit], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="corsa_plugins"):
        assert fruits["apple"].colour == "green"
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "apple of corsa_test_fruits:apple is left out: the name is taken" in told
    assert "fig of corsa_test_fruits:fig is left out: it is not a Fruit of this name" in told
    assert "stone of corsa_test_fruits:stone is left out: it is not a Fruit of this name" in told
    assert "broken of corsa_test_fruits:broken is left out" in told


def test_a_package_that_comes_later_is_found_when_asked_to_look_again(tmp_path: Path) -> None:
    registry = Registry(Fruit, "corsa_test.later", OURS)
    assert list(registry) == ["pear", "apple"]
    write_package(tmp_path, "corsa_test_later", SOURCE, "[corsa_test.later]\nplum = corsa_test_later:plum\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setitem(sys.modules, "tests.test_registry", sys.modules[__name__])
        assert list(registry) == ["pear", "apple"]
        registry.refresh()
        assert list(registry) == ["pear", "apple", "plum"]
    sys.modules.pop("corsa_test_later", None)


def test_two_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="same name"):
        list(Registry(Fruit, "corsa_test.none", (*OURS, Fruit("pear"))))
