from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import hub as local


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[local.Hub]:
    """A Hub that huggingface_hub speaks to, with a token."""
    with local.running() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", local.TOKEN)
        yield running
