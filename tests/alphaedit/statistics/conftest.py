"""Statistics of a small Llama, in memory."""

from __future__ import annotations

import pytest

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from tests.conftest import DOCUMENTS


@pytest.fixture
def statistics(tiny_llama, tiny_tokenizer) -> KeyStatistics:
    return collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (0, 1), n_tokens=800, length=32, sample_size=30)
