"""Sizes at which one chunk is enough, and at which everything is in many."""

from __future__ import annotations

import pytest

from corsa_plugins.merging import memory, selection


@pytest.fixture(params=[(2**17, 2**20), (5, 0)], ids=["one chunk", "many chunks, histograms only"])
def _sizes(request, monkeypatch):
    monkeypatch.setattr(memory, "CHUNK", request.param[0])
    monkeypatch.setattr(selection, "MAX_CANDIDATES", request.param[1])
