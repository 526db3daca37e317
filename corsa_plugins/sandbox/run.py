"""Running a program of unknown intent, and what came of it."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corsa_plugins.sandbox.limits import Limits, SandboxError

__all__ = ["Outcome", "run_program"]

_INSIDE = Path(__file__).with_name("inside.py")
_FOLDER = "/program"
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_GRACE = 1.0  # seconds that streams may stay open once everything has ended
_SPARE = 5.0  # seconds: what keeps the time is outside the program's reach, and this is for when it fails too


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        end: ``"exit"``, by itself or by a limit of the kernel's; ``"time"``: not in time; ``"output"``: it wrote too
            much; ``"left"``: processes of it are left, which only happens without namespaces.
        code: Its exit status; 128 and the signal's number where a signal ended it.
        output: The beginning of what it wrote to its standard streams, at most ``output_bytes``.
        report: Likewise of what it wrote to file descriptor 3.
        seconds: From start to end.
    """

    end: str
    code: int
    output: bytes
    report: bytes
    seconds: float


def run_program(program: str, given: bytes = b"", *, limits: Limits, namespaces: bool = True) -> Outcome:
    """Run a Python program in a sandbox of its own; safe to call from several threads.

    Whether the machine keeps what the sandbox promises is asked before, by
    :func:`corsa_plugins.sandbox.probes.check_sandbox`.

    Args:
        program: Python source. It starts in an empty folder, and may report to file descriptor 3.
        given: What it finds on its standard input.
        limits: What it may use.
        namespaces: Without, limits, environment and folder are all that is its own.

    Raises:
        SandboxError: The sandbox cannot be made: the program was not run.
    """
    folder = Path(tempfile.mkdtemp(prefix="corsa-program-"))
    try:
        with _Pipes() as pipes:
            spec = _spec(program, folder, pipes, limits, namespaces)
            start = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-E", "-P", str(_INSIDE), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(str(folder)),
                cwd="/",
                pass_fds=(pipes.report[1], pipes.status[1]),
                start_new_session=True,
            )
            pipes.close_writing()
            return _watch(process, pipes, given, limits, start)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Pipes:
    """Where the program reports, and where what keeps its time does."""

    def __init__(self) -> None:
        self.report, self.status = os.pipe(), os.pipe()
        self._open = {*self.report, *self.status}

    def close_writing(self) -> None:
        for end in (self.report[1], self.status[1]):
            os.close(end)
            self._open.discard(end)

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *error: object) -> None:
        for end in self._open:
            os.close(end)


def _spec(program: str, folder: Path, pipes: _Pipes, limits: Limits, namespaces: bool) -> dict[str, Any]:
    inside = _FOLDER if namespaces else str(folder)
    return {
        "namespaces": namespaces,
        "mount_point": str(folder),
        "folder": inside,
        "folder_bytes": limits.folder_bytes,
        "visible": _visible(),
        "limits": asdict(limits),
        "python": sys.executable,
        "arguments": ["-s", "-P", "-B", "-X", "utf8", "-c", program],
        "environment": _environment(inside),
        "report": pipes.report[1],
        "status": pipes.status[1],
    }


def _environment(folder: str) -> dict[str, str]:
    """All of it: nothing is inherited. One thread a library, so that threads are no part of what a machine decides."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    place = {name: folder for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **threads, **place}


def _visible() -> list[str]:
    """What a program sees of the machine's files, read-only: the system's libraries, this Python, its packages."""
    own = [sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)]
    kept: list[str] = []
    for path in sorted({*_SYSTEM, *own}, key=lambda path: (path.count("/"), path)):
        if path != "/" and os.path.lexists(path) and not _is_within(path, kept):
            kept.append(path)
    return kept


def _is_within(path: str, others: Iterable[str]) -> bool:
    return any(path == other or path.startswith(f"{other}/") for other in others)


def _watch(process: subprocess.Popen[bytes], pipes: _Pipes, given: bytes, limits: Limits, start: float) -> Outcome:
    """Feed the program, keep what it writes, and end it where it writes too much."""
    assert process.stdin is not None
    assert process.stdout is not None
    kept = {process.stdout.fileno(): bytearray(), pipes.report[0]: bytearray(), pipes.status[0]: bytearray()}
    end, over, until = "", False, start + limits.seconds + _SPARE
    rest = memoryview(given)
    with process, selectors.DefaultSelector() as ready:
        for source in kept:
            ready.register(source, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        reading = set(kept)
        while reading:
            events = ready.select(max(0.0, until - time.monotonic()))
            if not events:
                end = end or ("left" if over else "time")
                process.kill()
                break
            for key, _ in events:
                if key.fileobj is process.stdin:
                    rest = _feed(process.stdin, rest)
                    if not rest:
                        ready.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                kept[key.fd] += chunk
                if not chunk:
                    ready.unregister(key.fd)
                    reading.discard(key.fd)
                    if key.fd == pipes.status[0]:  # all of it has ended, and nobody is left to write
                        over, until = True, time.monotonic() + _GRACE
                elif len(kept[key.fd]) > limits.output_bytes and not end:
                    end = "output"
                    process.kill()
    output, report, status = (bytes(kept[source]) for source in kept)
    return _outcome(end, output, report, status, limits, time.monotonic() - start)


def _feed(stream: Any, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(stream.fileno(), rest[:65536]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _outcome(end: str, output: bytes, report: bytes, status: bytes, limits: Limits, seconds: float) -> Outcome:
    said: dict[str, Any] = json.loads(status) if status else {"end": end or "time", "code": 137, "reason": ""}
    reason = said["reason"] if said["end"] == "refused" else ""
    if said["code"] == 126 and report.startswith(b"refused: "):
        reason = report.decode(errors="replace").removeprefix("refused: ")
    if reason or not (status or end):
        text = output.decode(errors="replace").strip()
        raise SandboxError(f"the sandbox cannot be made: {reason or text or 'it ended before it began'}")
    return Outcome(
        end or said["end"], said["code"], output[: limits.output_bytes], report[: limits.output_bytes], seconds
    )
