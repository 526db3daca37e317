"""Settings classes for tests, and strategies for what is right and what is wrong in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hypothesis import strategies as st
from pydantic import Field

from corsa_plugins.settings import BlockNumber, Positive, Settings, Share


@dataclass(frozen=True)
class Part(Settings):
    rate: Positive = 0.1
    kind: Literal["slow", "fast"] = "slow"


@dataclass(frozen=True)
class Whole(Settings):
    layers: tuple[BlockNumber, ...]
    share: Share = 0.5
    count: Annotated[int, Field(ge=2, le=5)] = 3
    name: str | None = None
    switch: bool = True
    part: Part = field(default_factory=Part)
    extra: Part | None = None
    free: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if self.switch and len(self.layers) > 4:
            raise self.refused("layers", "with a switch it must be at most four")


finite = st.floats(allow_nan=False, allow_infinity=False)
parts = st.builds(
    Part, rate=st.floats(0, exclude_min=True, allow_infinity=False), kind=st.sampled_from(["slow", "fast"])
)
wholes = st.builds(
    Whole,
    layers=st.lists(st.integers(0, 10**6), max_size=4),
    share=st.floats(0, 1) | st.integers(0, 1),
    count=st.integers(2, 5),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    switch=st.booleans(),
    part=parts,
    extra=st.none() | parts,
    free=st.dictionaries(st.text("abc"), st.integers() | st.lists(finite)),
)
no_numbers = st.booleans() | st.none() | st.text() | st.binary() | st.just([1]) | st.sampled_from([math.nan, math.inf])
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "layers": st.integers() | st.text() | st.lists(st.integers(max_value=-1), min_size=1) | st.just([True]) | st.none(),
    "share": no_numbers | st.floats(min_value=1, exclude_min=True) | st.integers(max_value=-1),
    "count": no_numbers | st.integers(max_value=1) | st.integers(min_value=6) | finite,
    "name": st.integers() | st.booleans() | st.lists(st.text()),
    "switch": st.integers() | st.text() | st.none(),
    "part": st.none() | st.integers() | st.text() | st.lists(st.text()),
    "extra": st.integers() | st.text() | st.lists(st.text()),
    "free": st.integers() | st.text() | st.lists(st.text()),
}
