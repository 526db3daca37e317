"""An output directory is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from corsa_plugins.errors import CorsaError
from corsa_plugins.outputs import OutputError, new_directory


def fill(out: Path, error: BaseException | None = None) -> None:
    with new_directory(out) as partial:
        (partial / "half").write_text("of it")
        assert not out.exists() or not list(out.iterdir())
        if error is not None:
            raise error


@pytest.mark.parametrize("empty", [False, True])
def test_it_is_there_when_it_is_whole(tmp_path: Path, empty: bool) -> None:
    if empty:
        (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "half"]


def test_without_a_name_it_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the output has no name"), new_directory(""):
        raise AssertionError("begun")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of a framework"), CorsaError("ours")])
def test_whatever_is_raised_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        fill(tmp_path / "out", error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_the_outputs_fault_whoever_writes(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(OutputError, match=r"out cannot be written: .*; nothing is left of it"):
        fill(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "model.safetensors"),
        SafetensorError("Error while deserializing header: incomplete metadata"),
        OSError("the Hub cannot be reached"),
        ConnectionRefusedError(111, "Connection refused"),
        PermissionError(13, "Permission denied", "/somewhere/else/model.safetensors"),
        OSError(28, "No space left on device", "/a/cache/of/others"),
        OSError(12, "Cannot allocate memory"),
        Exception("No such file or directory (os error 2)"),
        Exception("of a library, about something else"),
    ],
)
def test_what_could_not_be_read_is_not_the_outputs_fault(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        fill(tmp_path / "out", error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out/file", "out", ".out.abcdefgh.part/out/file", "."])
def test_a_file_that_an_error_names_tells_whose_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"out cannot be written: .*Permission denied"):
        fill(tmp_path / "out", PermissionError(13, "Permission denied", str(tmp_path / name)))
    beside = PermissionError(13, "Permission denied", str(tmp_path / "out2"))
    with pytest.raises(PermissionError) as caught:
        fill(tmp_path / "out", beside)
    assert caught.value is beside


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file is a file: name a folder"):
        fill(tmp_path / "file")
    with pytest.raises(OutputError, match="is not empty: name a new folder"):
        fill(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        fill(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
