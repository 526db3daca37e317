"""What a program may use, and what a sandbox promises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from corsa_plugins.errors import CorsaError, SettingError

__all__ = ["Guarantee", "Limits", "SandboxError"]


class SandboxError(CorsaError, RuntimeError):
    """A program that cannot be run as safely as was asked; the message names what is missing, and what can be done."""


class Guarantee(StrEnum):
    """What holds of a program that runs in the sandbox."""

    NETWORK = "network"
    FILES = "files"
    SECRETS = "secrets"
    SIGNALS = "signals"
    OUTLIVING = "outliving"
    PROCESSES = "processes"
    MEMORY = "memory"
    CPU = "cpu"
    TIME = "time"
    FILE_SIZE = "file-size"
    OUTPUT = "output"

    @property
    def meaning(self) -> str:
        """In words."""
        return _MEANINGS[self]


_MEANINGS = {
    Guarantee.NETWORK: "it reaches no network, the machine's own included",
    Guarantee.FILES: "it changes no file outside its own folder, which is empty when it starts",
    Guarantee.SECRETS: "it sees no environment, memory or files of its user's, but Python and its packages",
    Guarantee.SIGNALS: "it can signal no process but its own",
    Guarantee.OUTLIVING: "none of its processes is there when it is said to have ended",
    Guarantee.PROCESSES: "it has no more processes and threads at once than it may",
    Guarantee.MEMORY: "none of its processes takes more memory than it may",
    Guarantee.CPU: "none of its processes computes for longer than it may",
    Guarantee.TIME: "it ends in time",
    Guarantee.FILE_SIZE: "no file of it grows longer than it may",
    Guarantee.OUTPUT: "no more of its output is kept than it may write, and it ends when it writes more",
}


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Computing, of each process.
        memory: Address space of each process, in bytes; of all of them together ``processes`` times as much.
        processes: Processes and threads at once.
        file_bytes: Of each file.
        folder_bytes: Of all files in its folder together, where it has a file system of its own.
        output_bytes: That it may write to its standard streams, and as much to where it reports.

    Raises:
        SettingError: One is out of range.
    """

    seconds: float = 15.0
    cpu_seconds: int = 10
    memory: int = 4 * 2**30
    processes: int = 16
    file_bytes: int = 16 * 2**20
    folder_bytes: int = 64 * 2**20
    output_bytes: int = 64 * 2**10

    def __post_init__(self) -> None:
        for name, least in (("seconds", 0.1), ("cpu_seconds", 1), ("memory", 2**26), ("processes", 1)):
            if not getattr(self, name) >= least:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        for name in ("file_bytes", "folder_bytes", "output_bytes"):
            if getattr(self, name) < 4096:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be at least 4096")
