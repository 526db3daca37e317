"""Work in processes of its own, side by side, with news of how far each is."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.managers import SyncManager
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from corsa_plugins.errors import CorsaError

__all__ = ["News", "ProcessError", "side_by_side"]

News = Callable[[float, str], None]
"""Takes the share of the work that is done, in [0, 1], and what is being done."""

_T = TypeVar("_T")


class ProcessError(CorsaError, RuntimeError):
    """A process ended from outside before its work was done."""


def side_by_side(
    work: Mapping[str, Callable[[News], _T]],
    *,
    workers: int | None = None,
    report: Callable[[str, float, str], None] | None = None,
) -> Generator[tuple[str, _T], None, None]:
    """Do several pieces of work, each in a process with a single thread, and yield the results as they come.

    A model as small as the testbed gains nothing from a second thread, and half the time from a second process. No
    process outlives this one, however it ends: each of them ends with the work of its caller.

    Args:
        work: By name; each a picklable function (of a module, or ``functools.partial`` of one) that takes a function to
            tell its news to. The first ones are begun first.
        workers: Processes at a time; by default one for each core.
        report: Called in this process with the name of a piece of work and its news.

    Raises:
        ProcessError: A process was killed.
        Exception: As raised by the work. Whatever is raised, here or in the caller's loop once the generator is closed,
            ends what runs at once, and the rest is not begun any more.
    """
    context = multiprocessing.get_context("spawn")
    limit = min(len(work), workers or os.cpu_count() or 1)
    if limit < 1:
        return
    # Closed by its only holder, or with it, the line ends all that listen.
    listening, lifeline = context.Pipe(duplex=False)
    left = list(work)
    manager = SyncManager(ctx=context)
    with listening, lifeline:
        manager.start(_begin, (listening,))
        with manager, ProcessPoolExecutor(limit, context, initializer=_begin, initargs=(listening,)) as pool:
            news = manager.Queue()
            try:
                running: dict[Future[_T], str] = {
                    pool.submit(_run, name, piece, news): name for name, piece in work.items()
                }
                while running:
                    finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    _pass_on(news, report)
                    for future in finished:
                        name, result = running.pop(future), future.result()
                        left.remove(name)
                        yield name, result
            except BrokenProcessPool:
                raise ProcessError(
                    f"a process was killed at its work, perhaps for want of memory; not done: {', '.join(left)}. Run "
                    "it again, with fewer processes at a time"
                ) from None
            finally:
                if left:
                    lifeline.close()
                pool.shutdown(wait=False, cancel_futures=True)


def _begin(listening: Connection) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to all of a terminal: the caller decides
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which an end at once would leave there
    threading.Thread(target=_end_with, args=(listening,), daemon=True).start()


def _end_with(listening: Connection) -> None:
    try:
        listening.recv_bytes()  # nothing is ever sent
    finally:
        os._exit(1)


def _run(name: str, work: Callable[[News], _T], news: Any) -> _T:
    return work(lambda share, doing: news.put((name, share, doing)))


def _pass_on(news: Any, report: Callable[[str, float, str], None] | None) -> None:
    while True:
        try:
            message = news.get_nowait()
        except queue.Empty:
            return
        if report is not None:
            report(*message)
