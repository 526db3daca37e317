"""Work in processes of its own: results, news and errors come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from corsa_plugins.demo.processes import News, ProcessError, side_by_side


def _work(number: int, news: News) -> tuple[int, int, int]:
    news(0.5, f"half of {number}")
    news(1.0, "done")
    return number, os.getpid(), torch.get_num_threads()


def _fail(news: News) -> None:
    raise ValueError("no more")


def _slow(marker: str, news: News) -> None:
    time.sleep(0.5)
    open(marker, "w").close()


def test_results_and_news_come_from_processes_with_one_thread() -> None:
    told: dict[str, list[tuple[float, str]]] = {}
    work = {f"job {number}": partial(_work, number) for number in range(3)}
    found = dict(side_by_side(work, workers=2, report=lambda name, *news: told.setdefault(name, []).append(news)))
    assert {name: result[0] for name, result in found.items()} == {"job 0": 0, "job 1": 1, "job 2": 2}
    assert os.getpid() not in {process for _, process, _ in found.values()}
    assert {threads for *_, threads in found.values()} == {1}
    assert told == {name: [(0.5, f"half of {name[-1]}"), (1.0, "done")] for name in work}


def test_nothing_to_do_is_nothing_done() -> None:
    assert list(side_by_side({})) == []


def test_an_error_reaches_the_caller_and_no_more_work_is_begun(tmp_path) -> None:
    later = {f"later {n}": partial(_slow, str(tmp_path / str(n))) for n in range(8)}
    with pytest.raises(ValueError, match="no more"):
        list(side_by_side({"broken": _fail, **later}, workers=1))
    assert len(list(tmp_path.iterdir())) < 8


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def _sleep(mark: Path, news: News) -> None:
    mark.write_text(str(os.getpid()))
    time.sleep(100)


def _kill(mark: Path, news: News) -> None:
    while not mark.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def _process(mark: Path, limit: float = 60) -> int:
    """The process that wrote its number there."""
    end = time.monotonic() + limit
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return int(mark.read_text())


def _ends(process: int, limit: float = 20) -> bool:
    """Whether a process is gone in time; one that waits to be asked for its exit code is."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_killed_process_is_an_error_that_names_what_is_not_done(tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    work = {"asleep": partial(_sleep, mark), "killed": partial(_kill, mark), "later": partial(_sleep, mark)}
    with pytest.raises(ProcessError, match=r"not done: asleep, killed, later\. Run it again"):
        list(side_by_side(work, workers=2))


@needs_proc
def test_an_error_in_the_callers_loop_ends_what_runs(tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    work: dict[str, Any] = {"quick": partial(_work, 1), "asleep": partial(_sleep, mark)}
    with closing(side_by_side(work, workers=2)) as results:
        assert next(results)[0] == "quick"
        process = _process(mark)
    assert _ends(process)


@needs_proc
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_caller(tmp_path: Path, sent: signal.Signals) -> None:
    mark = tmp_path / "begun"
    script = (
        "import signal, sys; from functools import partial; from pathlib import Path\n"
        "from corsa_plugins.demo.processes import side_by_side; from tests.demo.test_processes import _sleep\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "    list(side_by_side({n: partial(_sleep, Path(sys.argv[1])) for n in 'abc'}, workers=1))\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py", mark], env=environment, stderr=subprocess.DEVNULL
    ) as caller:
        try:
            process = _process(mark)
            caller.send_signal(sent)
            caller.wait(20)
        finally:
            caller.kill()
    assert _ends(process)
