"""Whether this machine keeps what the sandbox promises: every promise is tried once."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from corsa_plugins.sandbox import attacks
from corsa_plugins.sandbox.limits import Guarantee, Limits, SandboxError
from corsa_plugins.sandbox.run import Outcome, run_program

__all__ = ["Sandbox", "check_sandbox", "failing_guarantees", "refusal"]

logger = logging.getLogger(__name__)

_SMALL = Limits(
    seconds=30, cpu_seconds=20, memory=512 * 2**20, processes=4, file_bytes=2**20, folder_bytes=4 * 2**20,
    output_bytes=64 * 2**10,
)  # fmt: skip


@dataclass(frozen=True)
class Sandbox:
    """A way to run programs whose promises were tried.

    Attributes:
        limits: What a program may use.
        namespaces: Whether programs have namespaces of their own.
        unenforced: Promises that this machine does not keep, and that are done without.
    """

    limits: Limits
    namespaces: bool = True
    unenforced: tuple[Guarantee, ...] = ()

    def run(self, program: str, given: bytes = b"") -> Outcome:
        """Run a program; as :func:`~corsa_plugins.sandbox.run.run_program`."""
        return run_program(program, given, limits=self.limits, namespaces=self.namespaces)


def check_sandbox(limits: Limits | None = None, *, without: Collection[Guarantee] = ()) -> Sandbox:
    """A sandbox that keeps every promise on this machine, by trying to break each of them once; a second or a few.

    Args:
        limits: Of the programs that it is for.
        without: Promises to do without, where the machine does not keep them. Those that it keeps are kept.

    Raises:
        SandboxError: The machine does not keep one that is not among ``without``; all such are named, with what
            happened, and so is what can be done.
    """
    limits = limits or Limits()
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"programs that a model writes are run on Linux alone: on {sys.platform} nothing holds them")
    try:
        run_program("pass", limits=_SMALL)
    except SandboxError as error:
        namespaces, why = False, f" ({error})"
    else:
        namespaces, why = True, ""
    failing = failing_guarantees(namespaces=namespaces)
    refused = refusal(failing, without, why)
    if refused:
        raise SandboxError(refused)
    for name, what in failing.items():
        logger.warning("not enforced (%s): that %s (%s)", name.value, name.meaning, what)
    return Sandbox(limits, namespaces, tuple(failing))


def refusal(failing: Mapping[Guarantee, str], without: Collection[Guarantee], why: str = "") -> str | None:
    """What is said where a machine does not keep all that it should: what, what happened, and what can be done."""
    refused = {name: what for name, what in failing.items() if name not in without}
    if not refused:
        return None
    lines = [f"  {name.value}: that {name.meaning} ({what})" for name, what in refused.items()]
    return "\n".join(
        [
            f"this machine does not hold what a model writes{why}. Not kept:",
            *lines,
            "Run it where user namespaces may be made (Docker: --security-opt seccomp=unconfined; Ubuntu: sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0), or, where nothing can be lost, do without: "
            f"--unenforced {','.join(name.value for name in refused)}",
        ]
    )


def failing_guarantees(*, namespaces: bool = True) -> dict[Guarantee, str]:
    """The promises that this machine does not keep, and what happened when each was tried."""

    def tried(probe: Callable[[bool], str]) -> str:
        try:
            return probe(namespaces)
        except SandboxError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(_PROBES, pool.map(tried, _PROBES.values()), strict=True))
    return {name: what for name, what in found.items() if what}


def _attack(program: str, namespaces: bool, given: object = None, **limits: float) -> Outcome:
    own = replace(_SMALL, **limits)  # type: ignore[arg-type]
    return run_program(program, json.dumps(given).encode(), limits=own, namespaces=namespaces)


def _gotten(outcome: Outcome) -> str:
    """What an attack got; that it did not run as it should tells nothing, and counts as a failure."""
    if outcome.report:
        return "; ".join(outcome.report.decode(errors="replace").splitlines()[:3])
    if outcome.end != "exit" or outcome.code != 0:
        return f"the attempt ended with {outcome.end} {outcome.code}: {outcome.output[-300:].decode(errors='replace')}"
    return ""


def _network(namespaces: bool) -> str:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        places: list[tuple[int, int, object]] = []
        for family, kind, place in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0corsa-{secrets.token_hex(8)}"),
        ):
            line = stack.enter_context(socket.socket(family, kind))
            line.bind(place)
            if kind == socket.SOCK_STREAM:
                line.listen()
            if family == socket.AF_UNIX and isinstance(place, str) and not place.startswith("\0"):
                os.chmod(place, 0o777)
            places.append((family, kind, line.getsockname() if family == socket.AF_INET else place))
        return _gotten(_attack(attacks.NETWORK, namespaces, {"places": places}))


def _files(namespaces: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        target = Path(folder, "target")
        target.write_text("as it was")
        target.chmod(0o666)
        folders = [folder, tempfile.gettempdir(), str(Path.home()), "/", "/dev/shm", "/var/tmp", sys.prefix, "/usr/lib"]
        name = f"corsa-{secrets.token_hex(8)}"
        given = {"folders": folders, "name": name, "files": [str(target)]}
        outcome = _attack(attacks.FILES, namespaces, given)
        for path in (Path(place, name) for place in folders):
            path.unlink(missing_ok=True)
        intact = target.exists() and target.read_text() == "as it was"
        return _gotten(outcome) or ("" if intact else f"changed {target}")


def _secrets(namespaces: bool) -> str:
    secret = secrets.token_hex(16)
    environment = {**os.environ, "CORSA_PROBE": secret}
    with _sleeping(environment) as pid, tempfile.TemporaryDirectory() as folder:
        hidden = Path(folder, "hidden")
        hidden.write_text(secret)
        given = {"half": secret[:16], "other_half": secret[16:], "pids": [pid, os.getpid()], "files": [str(hidden)]}
        return _gotten(_attack(attacks.SECRETS, namespaces, given))


def _signals(namespaces: bool) -> str:
    with _sleeping(dict(os.environ)) as pid:
        return _gotten(_attack(attacks.SIGNALS, namespaces, {"pids": [pid, os.getpid()]}))


@contextmanager
def _sleeping(environment: Mapping[str, str]) -> Iterator[int]:
    """A process of the same user as this one, outside."""
    command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=dict(environment)) as process:
        yield process.pid


def _outliving(namespaces: bool) -> str:
    outcome = _attack(attacks.OUTLIVING, namespaces)
    return "" if (outcome.end, outcome.code) == ("exit", 0) else f"it ended with {outcome.end} {outcome.code}"


def _processes(namespaces: bool) -> str:
    given = {"tries": _SMALL.processes + 4, "most": _SMALL.processes}
    return _gotten(_attack(attacks.PROCESSES, namespaces, given))


def _memory(namespaces: bool) -> str:
    return _gotten(_attack(attacks.MEMORY, namespaces, {"bytes": 2 * _SMALL.memory}))


def _file_size(namespaces: bool) -> str:
    return _gotten(_attack(attacks.FILE_SIZE, namespaces, {"bytes": _SMALL.file_bytes}))


def _cpu(namespaces: bool) -> str:
    outcome = _attack(attacks.SPINNING, namespaces, cpu_seconds=1)
    return "" if outcome.end == "exit" and outcome.code > 128 else f"it ended with {outcome.end} {outcome.code}"


def _time(namespaces: bool) -> str:
    outcome = _attack(attacks.FOREVER, namespaces, seconds=1)
    return "" if outcome.end == "time" else f"it ended with {outcome.end} {outcome.code}"


def _output(namespaces: bool) -> str:
    outcome = _attack(attacks.OUTPUT, namespaces)
    most = _SMALL.output_bytes
    kept = max(len(outcome.output), len(outcome.report))
    return "" if outcome.end == "output" and kept <= most else f"{kept} bytes kept, and it ended with {outcome.end}"


_PROBES: dict[Guarantee, Callable[[bool], str]] = {
    Guarantee.NETWORK: _network,
    Guarantee.FILES: _files,
    Guarantee.SECRETS: _secrets,
    Guarantee.SIGNALS: _signals,
    Guarantee.OUTLIVING: _outliving,
    Guarantee.PROCESSES: _processes,
    Guarantee.MEMORY: _memory,
    Guarantee.CPU: _cpu,
    Guarantee.TIME: _time,
    Guarantee.FILE_SIZE: _file_size,
    Guarantee.OUTPUT: _output,
}
