"""A disk that is full."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_REMOUNT, _EVERYTHING_BELOW, _PRIVATE = 0x20, 0x4000, 0x40000


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk does, for real: a write beyond ``size`` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def own_mounts() -> None:
    """From here on, what this process mounts is seen by it and its children alone, and goes when they do.

    Raises:
        OSError: The system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    _called("unshare", _NEW_MOUNTS | (_NEW_USER if user else 0))
    if user:  # who is root here alone
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(content)
    _called("mount", b"none", b"/", None, _EVERYTHING_BELOW | _PRIVATE, None)


def small_disk(folder: Path, size: int) -> None:
    """Mount an empty disk of ``size`` bytes on a folder, in memory."""
    _called("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def resize(folder: Path, size: int) -> None:
    """Give the disk that is mounted on a folder another size."""
    _called("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", _REMOUNT, f"size={size}".encode())


def _called(name: str, *arguments: bytes | int | None) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*(ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments)):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mounts_of_its_own() -> bool:
    """Whether :func:`own_mounts` works here, tried in a process that ends with it."""
    if not hasattr(os, "fork") or not Path("/proc/self/ns/mnt").exists():
        return False
    if (pid := os.fork()) == 0:
        try:
            own_mounts()
            small_disk(Path("/tmp"), 4096)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
