"""Python scripts as they are run from a shell, in processes that begin with everything imported."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.forks import forks

Run = subprocess.CompletedProcess[str]


def run_script(script: Path, *arguments: str | Path, folder: Path, timeout: float = 400, **variables: str) -> Run:
    """``python SCRIPT ARGUMENTS...`` in this folder, with these variables of its environment."""
    with tempfile.TemporaryDirectory() as outputs:
        command = [str(script), *map(str, arguments)]
        process = forks().Process(target=_script, args=(command, folder, variables, outputs))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        out, err = (Path(outputs, kind).read_text() for kind in ("out", "err"))
        return subprocess.CompletedProcess(command, process.exitcode or 0, out, err)


def _script(command: list[str], folder: Path, variables: dict[str, str], outputs: str) -> None:
    import torch

    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(outputs, kind), os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
