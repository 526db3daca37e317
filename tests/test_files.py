"""Files and folders that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from corsa_plugins.errors import CorsaError
from corsa_plugins.files import (
    InUseError,
    atomic_directory,
    atomic_file,
    atomic_write_bytes,
    atomic_write_tensors,
    atomic_write_text,
    sha256_of_file,
    sole_use,
)


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
        assert folder.name == target.name, "what is written may name its folder"
        (folder / "file").write_text("x")
        assert not target.exists()
    assert _names(target) == ["file"]
    assert _names(tmp_path / "a") == ["b"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_comes_last_is_there_as_soon_as_the_folder_is(tmp_path: Path) -> None:
    def last(folder: Path) -> None:
        assert _names(folder) == ["file"]
        assert not (tmp_path / "out").exists()
        (folder / "card").write_text(folder.name)

    with atomic_directory(tmp_path / "out", last) as folder:
        (folder / "file").write_text("x")
    assert _names(tmp_path / "out") == ["card", "file"]
    assert (tmp_path / "out" / "card").read_text() == "out"
    with pytest.raises(AssertionError), atomic_directory(tmp_path / "other", last):
        pass
    assert _names(tmp_path) == ["out"]


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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path, existing: bool, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    if existing:
        path.write_text("old")

    def half() -> None:
        with atomic_file(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert _names(tmp_path) == (["file"] if existing else [])
    if existing:
        assert path.read_text() == "old"


def test_a_writer_may_put_another_file_in_the_place_of_the_temporary_one(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as temporary:
        (tmp_path / "other").write_text("new")
        os.replace(tmp_path / "other", temporary)
    assert (tmp_path / "file").read_text() == "new"
    assert _names(tmp_path) == ["file"]


def test_tensors_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "tensors.safetensors"
    tensors = {"half": torch.rand(3, 2).half(), "turned": torch.rand(2, 3).T, "with a gradient": torch.rand(2)}
    tensors["with a gradient"].requires_grad_()
    assert atomic_write_tensors(path, tensors, {"what": "these"}) == path
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    before = path.read_bytes()
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            atomic_write_tensors(path, {"new": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert _names(path.parent) == ["tensors.safetensors"]


def test_what_a_full_disk_says_of_tensors_is_an_error_of_the_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="tensors cannot be written"):
            atomic_write_tensors(tmp_path / "tensors", {"new": torch.zeros(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _names(tmp_path) == []


def test_two_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    refused: list[BaseException] = []

    def enter() -> None:
        try:
            with sole_use(folder):
                pass
        except CorsaError as error:
            refused.append(error)

    with sole_use(folder), sole_use(tmp_path):
        enter()
        threading.Thread(target=enter).run()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 3
    assert all(isinstance(error, InUseError) and f"{folder}: another run is at work" in str(error) for error in refused)
    enter()
    assert len(refused) == 3, "the folder is free again"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = "import sys, time; from corsa_plugins.files import sole_use\n"
    script += "with sole_use(sys.argv[1]): print('in', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InUseError), sole_use(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with sole_use(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_used_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".lock").mkdir()
    with caplog.at_level("INFO", logger="corsa_plugins"), sole_use(tmp_path):
        pass
    assert "cannot be locked" in caplog.text


@given(content=st.binary(max_size=200))
def test_the_digest_is_that_of_the_content(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(content)
    assert sha256_of_file(path) == hashlib.sha256(content).hexdigest()
