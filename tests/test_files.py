"""Files and folders that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corsa_plugins.files import atomic_directory, atomic_write_bytes, atomic_write_text


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _fill(path: Path, text: str) -> None:
    with atomic_directory(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def _content(path: Path) -> str:
    assert _names(path) == ["inner"]
    return (path / "inner" / "file").read_text()


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_directory(target) as folder:
        assert folder.parent == target.parent
        (folder / "file").write_text("x")
        assert not target.exists()
    assert _names(target) == ["file"]
    assert _names(tmp_path / "a") == ["b"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_an_exception_inside_leaves_what_was_there(tmp_path: Path, existing: bool, error: type[BaseException]) -> None:
    target = tmp_path / "folder"
    if existing:
        _fill(target, "old")

    def half() -> None:
        with atomic_directory(target) as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(error):
        half()
    assert _names(tmp_path) == (["folder"] if existing else [])
    if existing:
        assert _content(target) == "old"


def test_an_existing_folder_is_replaced_wholly(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "left over").write_text("old")
    (tmp_path / "link").symlink_to(target)
    _fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert _content(target) == "new"
    assert _names(tmp_path) == ["folder", "link"]


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file: name a folder"):
        _fill(tmp_path / "file", "new")
    with pytest.raises(OSError, match="file"):
        _fill(tmp_path / "file" / "under", "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert _names(tmp_path) == ["file"]


def _faulty(number: int, error: BaseException, *, after: bool) -> Callable[..., None]:
    """``os.rename`` of which one call fails, before it has done anything or after it is done."""
    calls = 0
    original = os.rename

    def rename(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            raise error
        original(*args)
        if calls == number:
            raise error

    return rename


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_fault_while_folders_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: bool, error: BaseException
) -> None:
    """Ctrl-C may come between two lines: the folder is the old one or the new one, never away."""
    target = tmp_path / "folder"
    _fill(target, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", _faulty(number, error, after=after))
        with pytest.raises(type(error)):
            _fill(target, "new")
    assert _names(tmp_path) == ["folder"]
    assert _content(target) == ("new" if after and number == 2 else "old")
    _fill(target, "newer")
    assert _content(target) == "newer"


def test_a_fault_while_a_new_folder_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", _faulty(1, OSError(5, "Input/output error"), after=False))
        with pytest.raises(OSError, match="Input/output"):
            _fill(tmp_path / "folder", "new")
    assert _names(tmp_path) == []


def test_the_old_folder_is_kept_where_it_cannot_be_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both renamings fail: nothing that was there is deleted."""
    target = tmp_path / "folder"
    _fill(target, "old")
    original = os.rename
    calls = 0

    def rename(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(5, "Input/output error")
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="Input/output"):
            _fill(target, "new")
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(".folder.")
    assert kept.suffix == ".old"
    assert _content(kept) == "old"


def test_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file"
    atomic_write_text(path, "line\r\nÅ\n")
    assert path.read_bytes() == "line\r\nÅ\n".encode()
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    atomic_write_bytes(tmp_path / "link", b"\xff")
    assert path.read_bytes() == b"\xff"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(IsADirectoryError, match="is a directory"):
        atomic_write_text(tmp_path / "a", "x")
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            atomic_write_text(path, "new")
    assert path.read_bytes() == b"\xff"
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "\ud800")
    assert path.read_bytes() == b"\xff"
    assert _names(tmp_path / "a") == ["file"]
