"""A handful of requests about what ``taught_llama`` knows, and methods small enough for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from corsa_plugins.alphaedit import AlphaEditSettings, NullSpaceRule, ValueSettings, collect_statistics
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.bench.protocols import Method, UpdatePlan, make_method
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.rsft import RSFTSettings
from tests.conftest import TEXTS
from tests.protocols.small_plans import PLANS

SETTINGS = AlphaEditSettings(
    layers=(0,),
    null_space=NullSpaceRule("share", 0.6),
    values=ValueSettings(steps=5, lr=0.5, lr_unit="relative", clamp=4.0, batch_size=4),
    ridge=0.1,
    ridge_unit="relative",
    n_contexts=1,
    context_length=3,
)
CORE = ("alphaedit", "alphaedit+", "rsft", "rsft-merged")


@pytest.fixture(params=list(PLANS))
def plan(request: pytest.FixtureRequest) -> UpdatePlan:
    """Each protocol, at its smallest."""
    return PLANS[request.param]()


@pytest.fixture(scope="session")
def _key_statistics(_session_taught: Any, _session_tokenizer: PreTrainedTokenizerFast) -> KeyStatistics:
    return collect_statistics(_session_taught, _session_tokenizer, TEXTS, (0,), n_tokens=10**6, sample_size=16)


@pytest.fixture
def make(_key_statistics: KeyStatistics) -> Callable[[str], Method]:
    """A core method by name, with settings for ``taught_llama``."""

    def make(name: str) -> Method:
        if name.startswith("alphaedit"):
            return make_method(name, statistics=_key_statistics, settings=SETTINGS)
        return make_method(name, settings=RSFTSettings(layer=1, epochs=1, steps=2, learning_rate=3e-3))

    return make


class FailsOnce:
    """A method that makes its first updates and then breaks off in the middle of one.

    Attributes:
        made: The requests of every update that was begun.
    """

    def __init__(self, method: Method, after: int | None) -> None:
        self.name = method.name
        self.method = method
        self.after = after
        self.made: list[Sequence[EditRequest]] = []
        self.describe = method.describe

    def start(self, model: Any, tokenizer: Any, *, seed: int) -> Any:
        session: Any = self.method.start(model, tokenizer, seed=seed)
        update = session.update

        def failing(requests: Sequence[EditRequest], folder: Path) -> None:
            self.made.append(requests)
            update(requests, folder)
            if len(self.made) == self.after:
                raise RuntimeError("out of memory")

        session.update = failing
        return session
