"""A sandbox that keeps all it promises, on a machine where there is one."""

from __future__ import annotations

import pytest

from corsa_plugins.sandbox import Limits, Sandbox, SandboxError, check_sandbox, run_program

LIMITS = Limits(
    seconds=60, cpu_seconds=3, memory=512 * 2**20, processes=4, file_bytes=2**20, folder_bytes=2 * 2**20,
    output_bytes=16 * 2**10,
)  # fmt: skip


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """Where the machine keeps less, it is refused by name, and there is nothing to attack."""
    refused = ""
    try:
        return check_sandbox(LIMITS)
    except SandboxError as error:
        refused = str(error)
    assert "--unenforced" in refused
    with pytest.raises(SandboxError):  # where programs can have namespaces, all of it is kept
        run_program("pass", limits=LIMITS)
    pytest.skip(f"refused, as it should be: {refused}")
