"""What a process that was killed has left beside a file or folder goes when the same is written again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corsa_plugins.files import atomic_directory, atomic_write_text

WRITER = """
import os, sys, time
from pathlib import Path
from corsa_plugins import files

kind, path, moment = sys.argv[1:]
rename = os.rename

def tell():
    print("now", flush=True)
    time.sleep(60)

def second(source, target):
    if Path(target) == Path(path):
        tell()
    rename(source, target)

if moment == "renaming":
    os.rename = second
with (files.atomic_file if kind == "file" else files.atomic_directory)(path) as part:
    (part if kind == "file" else part / "half").write_text("half")
    if moment == "writing":
        tell()
"""


def write(path: Path, kind: str, text: str) -> None:
    if kind == "file":
        atomic_write_text(path, text)
    else:
        with atomic_directory(path) as folder:
            (folder / "whole").write_text(text)


def content(path: Path) -> str:
    return (path if path.is_file() else path / "whole").read_text()


@pytest.fixture
def killed_writer():
    writers = []

    def start(path: Path, kind: str, moment: str = "writing") -> subprocess.Popen:
        writers.append(
            subprocess.Popen([sys.executable, "-c", WRITER, kind, path, moment], stdout=subprocess.PIPE, text=True)
        )
        assert writers[-1].stdout.readline() == "now\n"
        return writers[-1]

    yield start
    for writer in writers:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_left_by_a_killed_process_goes_and_nothing_else(tmp_path, killed_writer, kind):
    path = tmp_path / "out"
    write(path, kind, "before")
    at_work = killed_writer(path, kind)
    killed = killed_writer(path, kind)
    strangers = {".out.mine.part", ".out.abcdefgh.txt", "out.abcdefgh.part"}
    for name in strangers:
        (tmp_path / name).write_text("mine")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert content(path) == "before"
    assert len(list(tmp_path.iterdir())) == 6
    write(path, kind, "after")
    assert content(path) == "after"
    left = {file.name for file in tmp_path.iterdir()} - strangers - {"out"}
    assert len(left) == 1  # the other one is at work still
    at_work.kill()
    at_work.wait()
    write(path, kind, "at last")
    assert {file.name for file in tmp_path.iterdir()} == strangers | {"out"}


def test_a_folder_that_had_been_moved_away_comes_back(tmp_path, killed_writer):
    path = tmp_path / "out"
    write(path, "folder", "before")
    killed = killed_writer(path, "folder", "renaming")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not path.exists()
    with pytest.raises(RuntimeError), atomic_directory(path):
        raise RuntimeError("the second run fails too")
    assert content(path) == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
