"""Programs that mean harm, in the sandbox: each gets nothing, and what runs them goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from corsa_plugins.sandbox import Outcome, Sandbox
from tests.fixtures.sandbox import LIMITS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="programs are run on Linux alone")


def attack(sandbox: Sandbox, program: str, **given: object) -> Outcome:
    beginning = "import json, os, sys, time, signal\ngiven = json.load(sys.stdin)\n"
    return sandbox.run(beginning + program, json.dumps(given).encode())


def test_a_harmless_program_works_and_reports(sandbox):
    outcome = attack(
        sandbox,
        "import numpy, tempfile\nopen('mine', 'w').write('x')\ntempfile.NamedTemporaryFile().write(b'x')\n"
        "print(numpy.arange(3).sum(), given['word'])\nos.write(3, b'done')",
        word="näh",
    )
    assert (outcome.end, outcome.code, outcome.report) == ("exit", 0, b"done"), outcome.output
    assert outcome.output.decode() == "3 näh\n"


def test_every_program_starts_in_an_empty_folder_of_its_own(sandbox):
    for _ in range(2):
        assert attack(sandbox, "print(os.listdir()); open('left', 'w').write('x')").output == b"[]\n"


def test_more_processes_than_allowed_even_by_threads_and_sessions(sandbox):
    outcome = attack(
        sandbox,
        """
import threading
made = 1
for number in range(3 * given["most"]):
    try:
        if number % 2:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        elif os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
        made += 1
    except (OSError, RuntimeError):
        pass
os.write(3, str(made).encode())
os._exit(0)
""",
        most=LIMITS.processes,
    )
    assert 1 < int(outcome.report) <= LIMITS.processes, outcome


def test_processes_that_make_processes_end_with_the_program(sandbox):
    bomb = """
end = time.monotonic() + 1
while time.monotonic() < end:
    try: os.fork()
    except OSError: time.sleep(0.05)
"""
    start = time.monotonic()
    assert attack(sandbox, bomb).end == "exit"
    assert time.monotonic() - start < LIMITS.seconds


def test_a_child_that_outlives_its_parent_in_a_session_of_its_own_is_gone(sandbox):
    """It holds the streams, so a call that returns at once, as ended, has seen its end."""
    outcome = attack(
        sandbox, "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\nos._exit(0)"
    )
    assert outcome.end == "exit"


@pytest.mark.parametrize("stream", [1, 2, 3])
def test_endless_output(sandbox, stream):
    outcome = attack(sandbox, f"while True: os.write({stream}, b'x' * 65536)")
    assert outcome.end == "output"
    assert max(len(outcome.output), len(outcome.report)) == LIMITS.output_bytes


def test_endless_output_by_a_child_after_its_parent_is_gone(sandbox):
    outcome = attack(sandbox, "if os.fork() == 0:\n    while True: print('x' * 65536)\nelse: time.sleep(30)")
    assert outcome.end == "output"


def test_an_endless_loop_ends_by_its_computing(sandbox):
    outcome = replace(sandbox, limits=replace(LIMITS, cpu_seconds=1)).run("while True: pass")
    assert (outcome.end, outcome.code) == ("exit", 137)


def test_sleep_ends_by_the_clock_whatever_signals_are_ignored(sandbox):
    short = replace(sandbox, limits=replace(LIMITS, seconds=1.0))
    outcome = attack(short, "for n in (1, 2, 14, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\ntime.sleep(600)")
    assert outcome.end == "time"


def test_files_outside_are_neither_changed_nor_read(sandbox, tmp_path):
    os.chmod(tmp_path, 0o777)
    target = tmp_path / "target"
    target.write_text("secret")
    target.chmod(0o666)
    outcome = attack(
        sandbox,
        """
for path in given["paths"] + ["/proc/1/root" + given["paths"][0], "/proc/self/cwd/../.." + given["paths"][0]]:
    for act in (lambda: open(path).read(), lambda: open(path, "w"), lambda: os.unlink(path),
                lambda: os.rename(path, path + "2"), lambda: os.link(path, "here"), lambda: os.mkdir(path + "-d")):
        try:
            act()
            os.write(3, path.encode() + b"\\n")
        except OSError:
            pass
os.symlink(given["paths"][0], "link")
try: open("link", "w").write("x")
except OSError: pass
""",
        paths=[str(target), str(Path.home() / "x"), "/dev/shm/x", "/var/tmp/x"],
    )
    assert (outcome.code, outcome.report) == (0, b""), outcome
    assert target.read_text() == "secret"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_it_sees_of_the_system_cannot_be_written(sandbox):
    outcome = attack(
        sandbox,
        "for place in ('/', '/usr', '/usr/lib', '/etc', '/dev', sys.prefix, sys.base_prefix, *sys.path):\n"
        "    try:\n        open(place + '/x', 'w')\n        os.write(3, place.encode())\n    except OSError: pass",
    )
    assert (outcome.code, outcome.report) == (0, b""), outcome


def test_it_gains_no_rights_to_undo_what_holds_it(sandbox):
    outcome = attack(
        sandbox,
        """
import ctypes, resource
libc = ctypes.CDLL(None, use_errno=True)
for name, act in {
    "mount": lambda: libc.mount(b"none", b"/program", b"tmpfs", 0, None),
    "remount": lambda: libc.mount(None, b"/", None, 32, None),
    "unmount": lambda: libc.umount2(b"/usr", 2),
    "hostname": lambda: libc.sethostname(b"x", 1),
    "ptrace": lambda: libc.ptrace(16, 1, None, None),
    "chroot": lambda: libc.chroot(b"/usr"),
    "setuid": lambda: libc.setuid(0) if os.getuid() else -1,
}.items():
    if act() == 0:
        os.write(3, name.encode() + b"\\n")
for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(3, b"limit\\n")
    except (OSError, ValueError):
        pass
""",
    )
    assert (outcome.code, outcome.report) == (0, b""), outcome


def test_signals_reach_its_own_processes_alone(sandbox):
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as other:
        outcome = attack(
            sandbox,
            """
for pid in [*given["pids"], 1, -1]:
    try:
        os.kill(pid, 9)
        if pid > 1: os.write(3, b"x")
    except OSError: pass
os.write(3, b"alive")
""",
            pids=[other.pid, os.getpid(), os.getppid()],
        )
        assert other.poll() is None
    assert outcome.report == b"alive"


def test_the_environment_and_memory_of_its_parents_are_out_of_reach(sandbox, monkeypatch):
    monkeypatch.setenv("CORSA_SECRET", "s3cr" + "et")
    outcome = attack(
        sandbox,
        """
secret = given["half"] + "et"
seen = [f"{name}={value}" for name, value in os.environ.items()]
for pid in [1, os.getppid(), *given["pids"]]:
    for name in ("environ", "mem", "cmdline", "maps"):
        try: seen.append(open(f"/proc/{pid}/{name}", "rb").read(10**6).decode("latin-1"))
        except OSError: pass
if any(secret in text for text in seen):
    os.write(3, b"seen")
""",
        half="s3cr",
        pids=[os.getpid()],
    )
    assert (outcome.code, outcome.report) == (0, b""), outcome


def test_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as line, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        places = [
            (socket.SOCK_STREAM, line.getsockname()),
            (socket.SOCK_DGRAM, other.getsockname()),
            (socket.SOCK_STREAM, ("192.0.2.1", 53)),
        ]
        outcome = attack(
            sandbox,
            """
import socket
for kind, place in given["places"]:
    try:
        line = socket.socket(socket.AF_INET, kind)
        line.settimeout(2)
        line.connect(tuple(place))
        line.send(b"x")
        os.write(3, b"x")
    except OSError: pass
""",
            places=places,
        )
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(10)
    assert (outcome.code, outcome.report) == (0, b""), outcome


def test_memory(sandbox):
    outcome = attack(
        sandbox,
        """
import mmap
kept = []
try:
    while len(kept) < 64: kept.append(mmap.mmap(-1, 2**25))
except (MemoryError, OSError): pass
os.write(3, str(len(kept) * 2**25).encode())
""",
    )
    assert 0 < int(outcome.report) < LIMITS.memory


def test_a_huge_file_and_a_full_folder(sandbox):
    outcome = attack(
        sandbox,
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
total = 0
for number in range(16):
    try:
        with open(str(number), "wb", buffering=0) as file:
            while file.tell() < 2**24:
                total += file.write(b"x" * 65536)
    except OSError:
        os.write(3, f"{os.path.getsize(str(number))} ".encode())
print(total)
""",
    )
    sizes = [int(size) for size in outcome.report.split()]
    assert sizes[0] == LIMITS.file_bytes
    assert int(outcome.output) <= LIMITS.folder_bytes


def test_it_cannot_say_that_it_ended_well_when_its_streams_are_closed(sandbox):
    """Descriptors of what keeps the time are not among its own."""
    outcome = attack(
        sandbox, "for n in range(256):\n    try: os.write(n, b'{}')\n    except OSError: pass\nos._exit(7)"
    )
    assert (outcome.end, outcome.code) == ("exit", 7)
    assert outcome.report == b"{}"
