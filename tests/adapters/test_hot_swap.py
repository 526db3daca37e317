"""Two batches as two adapters on one base in one process: switched by PEFT, and mixed in one batch of requests."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from corsa_plugins.adapters import export_state
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.loading import put_adapters
from corsa_plugins.model.tokenization import encode_prompt
from tests.fixtures.adapters import Edited

NAMES = ("monday", "tuesday")


@pytest.fixture
def served(edited: Edited, tmp_path: Path) -> Any:
    for name in NAMES:
        export_state(edited.state, tmp_path / name, batches=[name])
    return put_adapters(edited.base.model, {name: tmp_path / name for name in NAMES})


def test_each_answers_its_own_edits(served: Any, edited: Edited) -> None:
    seconds = []
    for active in (*NAMES, *NAMES):
        started = time.perf_counter()
        served.set_adapter(active)
        seconds.append(time.perf_counter() - started)
        for asked in NAMES:
            pairs = [(request.prompt, request.target_new) for request in edited.state.batch(asked).requests]
            said = [score.top1 for score in score_targets(served, edited.base.tokenizer, pairs)]
            assert all(said) if asked == active else not any(said), (active, asked)
    assert median(seconds) < 0.5


def test_one_batch_of_requests_has_an_adapter_for_each(served: Any, edited: Edited) -> None:
    """PEFT's ``adapter_names``: the base, and both adapters, on the same prompt."""
    for name in NAMES:
        request = edited.state.batch(name).requests[0]
        ids = torch.tensor([encode_prompt(edited.base.tokenizer, request.prompt)] * 3)
        with torch.no_grad():
            mixed = served(input_ids=ids, adapter_names=["__base__", *NAMES]).logits[:, -1]
            for row, active in enumerate(NAMES, start=1):
                served.set_adapter(active)
                torch.testing.assert_close(mixed[row], served(input_ids=ids[:1]).logits[0, -1], rtol=1e-4, atol=1e-4)
            with served.disable_adapter():
                torch.testing.assert_close(mixed[0], served(input_ids=ids[:1]).logits[0, -1], rtol=1e-4, atol=1e-4)
        assert not torch.equal(mixed[1], mixed[2])
