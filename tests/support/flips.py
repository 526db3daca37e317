"""Folders in which one bit of one file is another."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path


def flip(file: Path, bit: int) -> None:
    """The file with that bit of it flipped."""
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def flipped_copies(folder: Path, name: str, count: int) -> Iterator[Path]:
    """``count`` times a copy of the folder, in the same place each time, with a bit of the file ``name`` flipped.

    The bits are spread over the file at random, the same each time. Of a manifest they are within names and digests:
    elsewhere a bit may make one space of another, or another program's file of it, which says nothing wrong.
    """
    copy = folder.with_name(f"{folder.name}-flipped")
    size = 8 * (folder / name).stat().st_size
    bits = random.Random(name)
    where = [bits.randrange(size) for _ in range(count)]
    if name == "manifest.json":
        content = (folder / name).read_text()
        digests = [
            index
            for index in range(content.index('"sha256"') + 10, len(content))
            if content[index] in "0123456789abcdef"
        ]
        where = [8 * bits.choice(digests) + bits.randrange(7) for _ in range(count)]
    for bit in where:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        flip(copy / name, bit)
        yield copy
    shutil.rmtree(copy)
