"""Programs that try what the sandbox promises to prevent, one a promise, and say what they got.

Each is Python source that reads a JSON object from its standard input and writes to file descriptor 3 what it got that
it should not have, line by line: nothing, where the promise is kept.
"""

from __future__ import annotations

__all__ = [
    "FILES", "FILE_SIZE", "FOREVER", "MEMORY", "NETWORK", "OUTLIVING", "OUTPUT", "PROCESSES", "SECRETS", "SIGNALS",
    "SPINNING",
]  # fmt: skip

_BEGINNING = """
import json, os, sys, time
given = json.load(sys.stdin)
def got(what):
    os.write(3, (str(what) + "\\n").encode())
"""

NETWORK = f"""{_BEGINNING}
import socket
for family, kind, place in given["places"]:
    try:
        with socket.socket(family, kind) as line:
            line.settimeout(2)
            line.connect(tuple(place) if isinstance(place, list) else place)
            line.send(b"x")
            got(f"connected to {{place}}")
    except OSError:
        pass
"""
"""Of listeners on the machine itself, by TCP, UDP and a local socket: what answers from outside is not asked."""

FILES = f"""{_BEGINNING}
for folder in given["folders"]:
    try:
        with open(f"{{folder}}/{{given['name']}}", "w"):
            got(f"wrote in {{folder}}")
    except OSError:
        pass
for path in given["files"]:
    for change in (lambda: open(path, "a").write("x"), lambda: os.truncate(path, 0), lambda: os.chmod(path, 0o777),
                   lambda: os.unlink(path), lambda: os.utime(path)):
        try:
            change()
            got(f"changed {{path}}")
        except OSError:
            pass
if os.listdir("."):
    got(f"found {{os.listdir('.')}} in its folder")
open("own", "w").write("x")
"""

SECRETS = f"""{_BEGINNING}
def look(path):
    try:
        with open(path, "rb") as file:
            return file.read(10_000_000)
    except OSError:
        return b""
secret = given["half"].encode() + given["other_half"].encode()
places = [f"/proc/{{pid}}/{{name}}" for pid in given["pids"] for name in ("environ", "cmdline")]
for path in ["/proc/self/environ", *places]:
    if secret in look(path):
        got(f"read {{path}}")
if any(secret.decode() in value for value in os.environ.values()):
    got("inherited the environment")
for path in given["files"]:
    if secret in look(path):
        got(f"read {{path}}")
for pid in given["pids"]:
    try:
        open(f"/proc/{{pid}}/mem", "rb").close()
        got(f"opened the memory of {{pid}}")
    except OSError:
        pass
"""

SIGNALS = f"""{_BEGINNING}
for pid in given["pids"]:
    try:
        os.kill(pid, 0)
        got(f"reached {{pid}}")
    except OSError:
        pass
"""

PROCESSES = f"""{_BEGINNING}
made = 1
for _ in range(given["tries"]):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    except OSError:
        break
    made += 1
if made > given["most"]:
    got(f"had {{made}} processes")
"""
"""In a bounded try: it never has more than it was told."""

OUTLIVING = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(20)
    os._exit(0)
"""
"""It ends at once, and leaves a process of another session that holds its standard streams."""

MEMORY = f"""{_BEGINNING}
try:
    taken = bytearray(given["bytes"])
    got(f"took {{len(taken)}} bytes")
except MemoryError:
    pass
"""

FILE_SIZE = f"""{_BEGINNING}
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with open("long", "wb", buffering=0) as file:
        while file.tell() <= given["bytes"]:
            file.write(b"x" * 65536)
        got(f"wrote {{file.tell()}} bytes")
except OSError:
    pass
"""

OUTPUT = """
import os
while True:
    os.write(1, b"x" * 65536)
    os.write(3, b"x" * 65536)
"""

SPINNING = """
while True:
    pass
"""

FOREVER = """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    time.sleep(1)
"""
