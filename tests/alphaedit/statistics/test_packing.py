"""Rows go on where they were."""

from __future__ import annotations

import itertools

from corsa_plugins.alphaedit.statistics.packing import TokenRows
from tests.conftest import DOCUMENTS


def test_rows_take_up_where_they_were(tiny_tokenizer):
    for pack in (True, False):
        whole = list(TokenRows(DOCUMENTS, tiny_tokenizer, 20, pack))
        first = TokenRows(DOCUMENTS, tiny_tokenizer, 20, pack)
        begun = list(itertools.islice(first, 11))
        second = TokenRows(DOCUMENTS, tiny_tokenizer, 20, pack)
        second.skip_to(first.position)
        assert begun + list(second) == whole
