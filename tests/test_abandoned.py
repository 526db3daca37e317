"""What a process that was killed has left beside a file or folder goes when the same is written again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corsa_plugins.files import atomic_directory, atomic_file, atomic_write_text
from corsa_plugins.outputs import OutputError, check_output

WRITER = """
import os, sys
from functools import partial
from pathlib import Path
from corsa_plugins import files, temporaries

kind, path, moment = sys.argv[1:]
rename, lock = os.rename, temporaries._lock

def tell():
    print("now", flush=True)
    sys.stdin.readline()

def late(path):
    temporaries._lock = lock
    tell()
    return lock(path)

def second(source, target):
    if Path(target) == Path(path):
        tell()
    rename(source, target)

if moment == "renaming":
    os.rename = second
if moment == "making":
    temporaries._lock = late
ways = {"file": files.atomic_file, "folder": files.atomic_directory, "roomy": partial(files.atomic_file, roomy=True)}
with ways[kind](path) as part:
    (part / "half" if kind == "folder" else part).write_text("half")
    if kind == "roomy":
        (part.parent / ".tmpAbC123").write_text("as safetensors writes first")
    if moment == "writing":
        tell()
"""


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


def write(path: Path, kind: str, text: str) -> None:
    if kind == "file":
        atomic_write_text(path, text)
    elif kind == "roomy":
        with atomic_file(path, roomy=True) as file:
            file.write_text(text)
            (file.parent / ".tmpAbC123").write_text("as safetensors writes first")
    else:
        with atomic_directory(path) as folder:
            (folder / "whole").write_text(text)


def content(path: Path) -> str:
    return (path if path.is_file() else path / "whole").read_text()


each_kind = pytest.mark.parametrize("kind", ["file", "folder", "roomy"])


@pytest.fixture
def killed_writer():
    writers = []

    def start(path: Path, kind: str, moment: str = "writing") -> subprocess.Popen:
        writers.append(subprocess.Popen([sys.executable, "-c", WRITER, kind, path, moment], **PIPES))
        assert writers[-1].stdout.readline() == "now\n"
        return writers[-1]

    yield start
    for writer in writers:
        writer.kill()
        writer.wait()


@each_kind
def test_what_was_left_by_a_killed_process_goes_and_nothing_else(tmp_path, killed_writer, kind):
    path = tmp_path / "out"
    write(path, kind, "before")
    at_work = killed_writer(path, kind)
    killed = killed_writer(path, kind)
    strangers = {".out.mine.part", ".out.MyLetter.part", ".out.abcdefgh.txt", "out.abcdefgh.part", ".out.abcdefgh.new"}
    for name in strangers:
        (tmp_path / name).write_text("mine")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert content(path) == "before"
    assert len(list(tmp_path.iterdir())) == 3 + len(strangers)
    write(path, kind, "after")
    assert content(path) == "after"
    left = {file.name for file in tmp_path.iterdir()} - strangers - {"out"}
    assert len(left) == 1  # the other one is at work still
    at_work.kill()
    at_work.wait()
    write(path, kind, "at last")
    assert {file.name for file in tmp_path.iterdir()} == strangers | {"out"}


@each_kind
def test_what_was_made_and_not_begun_goes_too(tmp_path, killed_writer, kind):
    killed = killed_writer(tmp_path / "out", kind, "making")
    killed.kill()
    killed.wait()
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.out\.[a-z0-9_]{8}\.new", left.name)
    write(tmp_path / "out", kind, "after")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@each_kind
def test_a_living_process_whose_temporary_one_was_taken_for_abandoned_makes_another(tmp_path, killed_writer, kind):
    slow = killed_writer(tmp_path / "out", kind, "making")
    write(tmp_path / "out", kind, "first")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    slow.communicate("\n", timeout=60)
    assert slow.returncode == 0
    assert (tmp_path / "out" / "half" if kind == "folder" else tmp_path / "out").read_text() == "half"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_output_that_is_refused_is_rid_of_what_was_left_all_the_same(tmp_path):
    """The kill came after the folder had got its name: the same command does not write it again."""
    write(tmp_path / "out", "folder", "whole")
    (tmp_path / ".out.abcdefgh.part").mkdir()
    with pytest.raises(OutputError):
        check_output(tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


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
