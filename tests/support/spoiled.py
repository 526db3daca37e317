"""Data with something wrong in it: what a hostile or a careless file holds."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from corsa_plugins.data.formats import formats

NAMES = sorted({field.partition(".")[0].partition("[")[0] for form in formats() for field in form.mapping})
TEXTS = [
    "", " ", "\n", "\t\r\n", "{}", "{", "}{", "{0}", "%s", "\ud800", "\x00", "\x1b[31m", "\ufeff", "a", "None", "nan",
    "שלום", "👩\u200d👧", "e\u0301", "\u202eabc", "[]", '{"str": 1}', "a" * 10_000, "The {} of", "...", "?", "`",
    "def f(:", "<script>",
]  # fmt: skip
NUMBERS = [0, -1, 1, 10**400, 0.0, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), True, False, None]


def anything(draw: random.Random, depth: int = 2) -> Any:
    """A value of any kind."""
    kind = draw.random()
    if depth and kind < 0.15:
        return [anything(draw, depth - 1) for _ in range(draw.randrange(4))]
    if depth and kind < 0.3:
        return {draw.choice([*NAMES, *TEXTS]): anything(draw, depth - 1) for _ in range(draw.randrange(4))}
    return draw.choice(TEXTS) if kind < 0.7 else draw.choice(NUMBERS)


def holders(record: Any) -> Iterator[dict[str, Any] | list[Any]]:
    """Whatever in a record holds something, itself among it."""
    inner = record.values() if isinstance(record, dict) else record if isinstance(record, list) else ()
    if inner:
        yield record
    for value in inner:
        yield from holders(value)


def spoil(record: dict[str, Any] | list[Any], draw: random.Random) -> None:
    """One thing in it goes wrong."""
    found = list(holders(record))
    if not found:
        if isinstance(record, list):
            record.append(anything(draw))
        else:
            record[draw.choice(NAMES)] = anything(draw)
        return
    holder: Any = draw.choice(found)
    key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    action = draw.randrange(5)
    if action == 0:
        del holder[key]
    elif action == 1:
        holder[key] = copy.deepcopy(draw.choice(found)) if len(str(holder)) < 20_000 else None
    elif action == 2:
        holder[key] = [holder[key]]
    elif action == 3 and isinstance(holder, dict):
        holder[draw.choice([*NAMES, *TEXTS])] = holder.pop(key)
    else:
        holder[key] = anything(draw)
