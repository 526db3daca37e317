"""A journal keeps what was finished, wherever it was stopped, and is never gone on with for something else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corsa_plugins.journal import Journal, JournalError, OtherWorkError, read_journal

HEAD = {"work": {"model": "a", "settings": [1, 2]}, "seed": 0}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journals")


def write(path: Path, items: list[Any], head: dict[str, Any] | None) -> bytes:
    path.unlink(missing_ok=True)
    with Journal(path, head) as journal:
        for item in items:
            journal.append(item)
    return path.read_bytes()


@given(items=st.lists(json_values, max_size=4), headed=st.booleans())
def test_what_was_added_is_found_again(folder: Path, items: list[Any], headed: bool) -> None:
    head = HEAD if headed else None
    content = write(folder / "whole", items, head)
    with Journal(folder / "whole", head) as journal:
        assert journal.items == items
        assert not journal.torn
    assert (folder / "whole").read_bytes() == content, "to open it changes nothing"
    found = read_journal(folder / "whole", headed=headed)
    assert (found.head, found.items, found.size, found.torn) == (head, items, len(content), False)


@given(items=st.lists(json_values, min_size=1, max_size=4), data=st.data(), headed=st.booleans())
def test_cut_anywhere_it_goes_on_and_ends_with_the_same(
    folder: Path, items: list[Any], data: st.DataObject, headed: bool
) -> None:
    head = HEAD if headed else None
    path = folder / "cut"
    content = write(path, items, head)
    least = 0 if headed else content.index(b"\n") + 1
    kept = data.draw(st.integers(least, len(content)), label="bytes kept")
    path.write_bytes(content[:kept])
    whole = content[:kept].count(b"\n") - headed
    with Journal(path, head) as journal:
        assert journal.items == items[: max(whole, 0)]
        assert journal.torn == (kept > 0 and not content[:kept].endswith(b"\n"))
        for item in items[len(journal.items) :]:
            journal.append(item)
    assert path.read_bytes() == content


@given(items=st.lists(json_values, min_size=1, max_size=3), garbage=st.binary(min_size=1, max_size=20))
def test_a_last_line_of_other_content_is_done_again(folder: Path, items: list[Any], garbage: bytes) -> None:
    """As a machine leaves it that stops before all of a file's pages are on the disk."""
    content = write(folder / "garbage", items[:-1], HEAD)
    torn = b"\0" + garbage.replace(b"\n", b"\0") + b"\n"
    (folder / "garbage").write_bytes(content + torn)
    with Journal(folder / "garbage", HEAD) as journal:
        assert journal.items == items[:-1]
        assert journal.torn
    assert (folder / "garbage").read_bytes() == content


def test_a_damaged_line_before_the_last_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = write(path, ["first", "second", "third"], HEAD).splitlines(keepends=True)
    lines[2] = b'"sec\n'
    path.write_bytes(b"".join(lines))
    for read in (lambda: Journal(path, HEAD), lambda: read_journal(path)):
        with pytest.raises(JournalError, match="line 3 is no line of a journal"):
            read()
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({**HEAD, "seed": 1}, ["seed"]),
        ({"work": HEAD["work"]}, ["seed"]),
        ({**HEAD, "more": True}, ["more"]),
        ({**HEAD, "work": {"model": "b", "settings": [1, 3]}}, ["model", "settings"]),
        ({**HEAD, "work": "other"}, ["work"]),
    ],
)
def test_other_work_is_refused_by_what_differs(tmp_path: Path, other: dict[str, Any], differing: list[str]) -> None:
    path = tmp_path / "journal"
    content = write(path, ["item"], HEAD)
    with pytest.raises(OtherWorkError, match=rf"other work \(other {', '.join(differing)}\)") as error:
        Journal(path, other)
    assert error.value.differing == differing
    assert path.read_bytes() == content


def test_a_head_may_hold_what_json_writes_otherwise(tmp_path: Path) -> None:
    for _ in range(2):
        with Journal(tmp_path / "journal", {"asked": ((1, 2), ()), 3: None}) as journal:
            assert journal.items == []


@pytest.mark.parametrize("content", [b"dear diary\n", b"dear diary", b'"a line"\n', b"[1]\n{}\n", b"\0\0\n", b"{"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    if content != b"{":  # the beginning of a head
        with pytest.raises(JournalError):
            Journal(path, HEAD)
    with pytest.raises(JournalError) if content not in (b'"a line"\n', b"[1]\n{}\n") else Journal(path):
        Journal(path)
    assert path.read_bytes() == content


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"row": 1}\n\n{"row": 2}\n')
    with Journal(tmp_path / "rows") as journal:
        journal.append({"row": 3})
    assert read_journal(tmp_path / "rows", headed=False).items == [{"row": 1}, {"row": 2}, {"row": 3}]


def test_an_item_is_on_the_disk_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        original(descriptor)
        flushed.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a" / "journal"
    with Journal(path, HEAD) as journal:
        for number in range(3):
            journal.append(number)
            assert flushed[-1] == path.stat().st_size == len(path.read_bytes())
    assert len(flushed) == 4
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert head == {**HEAD, "checksum": head["checksum"]}
    assert [line[0] for line in lines] == [0, 1, 2]


@given(items=st.lists(json_values, min_size=2, max_size=4), data=st.data())
def test_one_flipped_bit_is_noticed_or_says_nothing(folder: Path, items: list[Any], data: st.DataObject) -> None:
    """What is found is what was written, or the beginning of it."""
    path = folder / "flipped"
    content = bytearray(write(path, items, HEAD))
    at = data.draw(st.integers(0, 8 * len(content) - 1), label="bit")
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    try:
        found = read_journal(path)
    except JournalError:
        with pytest.raises(JournalError, match="flipped"):
            read_journal(path)
    else:
        assert found.items == items[: len(found.items)]
        assert len(found.items) >= len(items) - 2  # two lines may have become one
        assert found.head == HEAD


@pytest.mark.parametrize("other", [{"share": 0.9, "n": 3}, {"share": 0.5}, [{"share": 0.5, "n": 3}], 7])
def test_a_changed_figure_is_noticed(tmp_path: Path, other: Any) -> None:
    path = tmp_path / "journal"
    lines = write(path, [{"share": 0.5, "n": 3}, 8, {"checksum": "its own"}], HEAD).splitlines(keepends=True)
    for number in (1, 2, 3):
        value = json.loads(lines[number])
        seal = value[1] if isinstance(value, list) else value["checksum"]
        for changed in (other, [other, seal], {**other, "checksum": seal} if isinstance(other, dict) else other):
            spoiled = [*lines[:number], json.dumps(changed).encode() + b"\n", *lines[number + 1 :]]
            path.write_bytes(b"".join(spoiled))
            for read in (lambda: Journal(path, HEAD), lambda: read_journal(path)):
                with pytest.raises(JournalError, match=rf"journal, line {number + 1}, is not what was written"):
                    read()
            assert path.read_bytes() == b"".join(spoiled)


def test_what_was_begun_without_checksums_goes_on_without(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(json.dumps(HEAD) + '\n{"n": 1}\n')
    with Journal(path, HEAD) as journal:
        journal.append({"n": 2})
    assert path.read_text() == json.dumps(HEAD) + '\n{"n": 1}\n{"n": 2}\n'
    assert read_journal(path).items == [{"n": 1}, {"n": 2}]


def test_a_full_disk_leaves_a_journal_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    write(path, ["first"], HEAD)
    with Journal(path, HEAD) as journal, monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append("second")
        assert journal.items == ["first"]
    with Journal(path, HEAD) as journal:
        assert journal.items[:1] == ["first"]
        journal.append("third")
    assert read_journal(path).items[-1] == "third"
