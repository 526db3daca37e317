"""What stands between a program and the machine: run as a script, by :mod:`corsa_plugins.sandbox.run`, once a program.

It needs the standard library alone. In order: namespaces of its own (user, mount, process, network, IPC, host name), a
root folder of its own, in which Python and the system's libraries are read-only and one empty folder can be written,
no capabilities, limits, and then Python anew. Three processes: this one, which keeps the time and is out of the
program's sight; the first one of the process namespace, with whose end the kernel ends all others in it; the program.

Arguments: one JSON object (``Spec`` of :mod:`corsa_plugins.sandbox.run`). Written to the file descriptor ``status``:
``{"end": "exit" | "time" | "refused", "code": int, "reason": str}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from typing import Any, NoReturn

_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # of mount_setattr
_DETACH = 2
_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_SECUREBITS, _SET_NO_NEW_PRIVS = 1, 4, 24, 28, 38
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NO_GAIN = 0x2F  # secure bits: root gains no capabilities, a change of user neither adds nor removes any; locked
_NOBODY = 65534
_DEVICES = ("null", "zero", "urandom")

libc: Any = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call(f"mount {target}", libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]))


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _restrict(target: str, attributes: int) -> None:
    """Add attributes to a mount and to all below it; locked ones stay as they are."""
    wanted = _Attributes(attributes, 0, 0, 0)
    recursive = 0x8000
    _call(
        f"mount_setattr {target}",
        libc.syscall(_MOUNT_SETATTR, -100, target.encode(), recursive, ctypes.byref(wanted), ctypes.sizeof(wanted)),
    )


def _enter_namespaces() -> bool:
    """Into namespaces of our own; whether a second user is there, whom limits bind that do not bind root."""
    if os.geteuid() != 0:
        user, group = os.geteuid(), os.getegid()
        _call("unshare", libc.unshare(_NEW_USER | _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET))
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {user} 1")
        _write("/proc/self/gid_map", f"0 {group} 1")
        return False
    # Only who is outside may say that root here is also somebody else.
    ready, done = os.pipe(), os.pipe()
    own = os.getpid()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(ready[1])
            os.close(done[0])
            if os.read(ready[0], 1):
                for name in ("uid_map", "gid_map"):
                    _write(f"/proc/{own}/{name}", f"0 0 1\n1 {_NOBODY} 1")
                os.write(done[1], b"1")
        finally:
            os._exit(0)
    os.close(ready[0])
    os.close(done[1])
    _call("unshare", libc.unshare(_NEW_USER | _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET))
    os.write(ready[1], b"1")
    mapped = os.read(done[0], 1)
    os.waitpid(helper, 0)
    if not mapped:
        raise OSError(1, "the users of a namespace cannot be mapped")
    for end in (ready[1], done[0]):
        os.close(end)
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _own_root(spec: dict[str, Any]) -> None:
    """A root folder in which nothing but what a program needs is, read-only but for its folder."""
    root, folder = spec["mount_point"], spec["folder"]
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("root", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in spec["visible"]:
        target = root + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(path), target)
        elif os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
            _mount(path, target, None, _MS_BIND | _MS_REC)
            _restrict(target, _RDONLY | _NOSUID | _NODEV)
        elif os.path.exists(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _write(target, "")
            _mount(path, target, None, _MS_BIND)
            _restrict(target, _RDONLY | _NOSUID | _NODEV)
    os.makedirs(f"{root}/dev")
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _MS_BIND)
        _restrict(f"{root}/dev/{name}", _NOSUID)
    os.makedirs(root + folder, exist_ok=True)
    size = f"size={spec['folder_bytes']},nr_inodes=4096,mode=1777"
    _mount("folder", root + folder, "tmpfs", _MS_NOSUID | _MS_NODEV, size)
    with contextlib.suppress(OSError):  # no namespaces within: not promised, as not every machine lets it be set
        _write("/proc/sys/user/max_user_namespaces", "0")
    os.chdir(root)
    number = _PIVOT_ROOT[os.uname().machine]
    _call("pivot_root", libc.syscall(number, b".", b"."))
    _call("umount", libc.umount2(b".", _DETACH))
    # The root alone: the folder in it stays as it is.
    wanted = _Attributes(_RDONLY, 0, 0, 0)
    _call("root", libc.syscall(_MOUNT_SETATTR, -100, b"/", 0, ctypes.byref(wanted), ctypes.sizeof(wanted)))


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _drop_privileges(second_user: bool) -> None:
    for capability in range(64):
        libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # beyond the last one it is refused
    libc.prctl(_SET_SECUREBITS, _NO_GAIN, 0, 0, 0)
    if second_user:
        os.setgroups([])
        os.setresgid(1, 1, 1)
        os.setresuid(1, 1, 1)
    header, none = _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", libc.capset(ctypes.byref(header), ctypes.byref(none)))
    _call("no_new_privs", libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _limit(limits: dict[str, int], others: int) -> None:
    for name, value in (
        ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NPROC", limits["processes"] + others),
        ("RLIMIT_NOFILE", 256),
        ("RLIMIT_CORE", 0),
    ):
        kind = getattr(resource, name)
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _program(spec: dict[str, Any], others: int) -> NoReturn:
    """Python anew, with nothing of this process but standard streams and the descriptor to report to."""
    os.setsid()
    os.chdir(spec["folder"])
    os.dup2(1, 2)
    os.dup2(spec["report"], 3)
    os.closerange(4, 1024)
    os.set_inheritable(3, True)
    _limit(spec["limits"], others)
    os.execve(spec["python"], [spec["python"], *spec["arguments"]], spec["environment"])


def _first(spec: dict[str, Any], second_user: bool) -> NoReturn:
    """The first process of the namespace: it waits for the program, and what is left then ends with it."""
    try:
        os.close(spec["status"])
        _own_root(spec)
        _drop_privileges(second_user)
        libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        program = os.fork()
        if program == 0:
            _program(spec, 1 if second_user else 2)
    except BaseException as error:
        os.write(spec["report"], f"refused: {error}".encode()[:2000])
        os._exit(126)
    os.close(spec["report"])
    while True:
        pid, status = os.wait()
        if pid == program:
            os._exit(_code(status))


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _plain(spec: dict[str, Any]) -> NoReturn:
    """Without namespaces: limits, an environment and a folder of its own."""
    try:
        os.close(spec["status"])
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _program(spec, 0)
    except BaseException as error:
        os.write(spec["report"], f"refused: {error}".encode()[:2000])
        os._exit(126)


def _say(spec: dict[str, Any], end: str, code: int, reason: str = "") -> None:
    os.write(spec["status"], json.dumps({"end": end, "code": code, "reason": reason}).encode())


def _main(spec: dict[str, Any]) -> None:
    libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    second_user = False
    if spec["namespaces"]:
        try:
            second_user = _enter_namespaces()
        except (OSError, AttributeError) as error:
            return _say(spec, "refused", 0, str(error))
    first = os.fork()
    if first == 0:
        _first(spec, second_user) if spec["namespaces"] else _plain(spec)
    os.close(spec["report"])
    os.close(0)
    waiting = select.poll()
    waiting.register(os.pidfd_open(first), select.POLLIN)
    end = "exit"
    if not waiting.poll(spec["limits"]["seconds"] * 1000):
        end = "time"
        os.kill(first, signal.SIGKILL)
    _, status = os.waitpid(first, 0)
    if not spec["namespaces"]:
        with contextlib.suppress(OSError):
            os.killpg(first, signal.SIGKILL)
    _say(spec, end, _code(status))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
