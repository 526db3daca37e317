"""Records with several things wrong at once, by the thousand: each becomes requests or a reported problem.

500 a format; `CORSA_RECORDS=100000` makes it a hundred thousand.
"""

from __future__ import annotations

import copy
import os
import random

import pytest

from corsa_plugins.data.formats import get_format
from corsa_plugins.data.formats.base import Drops, RecordError
from corsa_plugins.data.requests import EditRequest
from tests.support.samples import SAMPLES, records
from tests.support.spoiled import spoil

COUNT = int(os.environ.get("CORSA_RECORDS", "500"))


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_one_is_read_or_refused(name: str) -> None:
    draw, form, good = random.Random(name), get_format(name), records(SAMPLES[name])
    read = refused = 0
    for number in range(COUNT):
        record = copy.deepcopy(draw.choice(good))
        for _ in range(draw.choice((1, 1, 2, 4))):
            spoil(record, draw)
        try:
            requests = form.convert(record, number, Drops())
            requests = form.finish(requests) if form.finish else requests
        except RecordError as error:
            refused += 1
            str(error).encode("utf-8")  # it can be shown on any terminal
        else:
            read += 1
            assert all(isinstance(request, EditRequest) for request in requests)
    assert read
    assert refused
