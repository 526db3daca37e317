"""What a machine keeps of the promises is found by trying, and what it does not keep is refused by name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from corsa_plugins.errors import SettingError
from corsa_plugins.sandbox import Guarantee, Limits, Sandbox, SandboxError, check_sandbox, run_program
from corsa_plugins.sandbox.probes import refusal

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="programs are run on Linux alone")

# No namespace can be made within: such a machine is a container as most are.
WITHOUT = """
import ctypes, os, sys
user, group = os.geteuid(), os.getegid()
if ctypes.CDLL(None).unshare(0x10000000) == 0:
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in maps.items():
        open(f"/proc/self/{name}", "w").write(text)
    open("/proc/sys/user/max_user_namespaces", "w").write("0")
from corsa_plugins.sandbox import SandboxError, check_sandbox
try:
    check_sandbox()
except SandboxError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_machine_without_namespaces_is_refused_and_what_is_missing_is_named():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "network: that it reaches no network" in done.stdout
    names = re.search(r"--unenforced (\S+)", done.stdout).group(1).split(",")
    assert {"network", "files", "secrets", "signals"} <= set(names)
    assert "time" not in names, done.stdout  # that much needs no namespace


def test_what_is_accepted_is_named_and_nothing_else():
    failing = {Guarantee.NETWORK: "connected", Guarantee.FILES: "wrote"}
    assert "--unenforced network,files" in refusal(failing, ())
    assert "--unenforced files" in refusal(failing, [Guarantee.NETWORK])
    assert "connected" not in refusal(failing, [Guarantee.NETWORK])
    assert refusal(failing, [*failing, Guarantee.MEMORY]) is None


def test_this_machine_keeps_all_of_it_or_is_refused(sandbox: Sandbox):
    assert sandbox.namespaces
    assert sandbox.unenforced == ()


def test_without_namespaces_limits_still_hold():
    limits = Limits(seconds=30, memory=256 * 2**20, output_bytes=4096)
    assert run_program("bytearray(2**29)", limits=limits, namespaces=False).code == 1
    assert len(run_program("while True: print('x' * 999)", limits=limits, namespaces=False).output) == 4096


def test_what_a_program_is_given_may_be_longer_than_a_pipe_holds(sandbox: Sandbox):
    assert sandbox.run("import sys; print(len(sys.stdin.read()))", b"x" * 10**6).output == b"1000000\n"
    assert sandbox.run("print('did not ask')", b"x" * 10**6).output == b"did not ask\n"


def test_every_promise_is_in_words_and_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "code.md").read_text()
    for name in Guarantee:
        assert f"| `{name.value}` | {name.meaning}" in text


@pytest.mark.parametrize(("name", "value"), [("seconds", 0), ("processes", 0), ("memory", 5), ("output_bytes", 0)])
def test_limits_out_of_range_are_named(name, value):
    with pytest.raises(SettingError, match=name):
        Limits(**{name: value})


def test_another_system_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="Linux alone"):
        check_sandbox()
