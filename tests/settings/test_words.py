"""Messages say what a value must be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from corsa_plugins.errors import SettingError
from tests.support.settings import Whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [-1]}, r"layers is \[-1\]: it must be a list, each item the number of a block, counted from 0$"),
        ({"share": 2}, "share is 2: it must be a number between 0 and 1$"),
        ({"share": math.nan}, "share is nan: it must be a finite number between 0 and 1$"),
        ({"share": "5e-4"}, r"share is '5e-4': .* is text: write 5\.0e-4"),
        ({"count": True}, "count is True: it must be an integer between 2 and 5$"),
        ({"name": 3}, "name is 3: it must be text, or None$"),
        ({"switch": "on"}, "switch is 'on': it must be true or false$"),
        ({"part": 3}, "part is 3: it must be of class Part, or a mapping of its settings$"),
        ({"part": {"rate": 0}}, r"^part\.rate is 0: it must be a number over 0$"),
        ({"part": {"kind": "fsat"}}, r"^part\.kind is 'fsat': it must be one of slow, fast$"),
        ({"part": {"rat": 1}}, r"^part\.rat is no setting: did you mean rate\?$"),
        ({"extra": {"rate": 0}}, r"^extra\.rate is 0"),
        ({"layers": [1, 2, 3, 4, 5]}, r"layers is \(1, 2, 3, 4, 5\): with a switch it must be at most four$"),
        ({"name": "x" * 500 + "\n", "free": object()}, "^free is <?object[^\n]{,60}>: it must be a mapping"),
    ],
)
def test_the_message_says_what_it_must_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Whole.from_dict({"layers": [1], **values})
