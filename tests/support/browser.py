"""A browser without a window: Chromium, told what to do through a pair of pipes."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Where it is, if there is one: ``apt-get install chromium``."""

_OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]


class Browser:
    """One page of a browser.

    Attributes:
        events: What the browser has told of the page, unasked: dialogs, errors and what scripts log.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._reading, self._writing, self._rest, self._number = reading, writing, b"", 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What the browser answers to a command of its protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._writing, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode())
        os.write(self._writing, b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)
            if told.get("method") == "Page.javascriptDialogOpening":  # which holds everything else up
                closing = {"id": 1_000_000, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self._writing, json.dumps(closing | {"sessionId": self._session}).encode() + b"\0")

    def open(self, page: Path) -> None:
        """Load a file, and wait until it is there with all that it loads."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + 60
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, "the page is never loaded"
            self.value("0")

    def value(self, expression: str) -> Any:
        """Of an expression of JavaScript in the page, awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def told(self, method: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            assert select.select([self._reading], [], [], 120)[0], "the browser is silent"
            read = os.read(self._reading, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with nothing in it, for as long as it is needed."""
    (theirs_in, writing), (reading, theirs_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        call = [str(BROWSER), *_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        far = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (theirs_in, theirs_out)]

        def place() -> None:  # it reads its commands from 3 and answers on 4
            os.dup2(far[0], 3)
            os.dup2(far[1], 4)

        process = subprocess.Popen(
            call, preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for one in far:
            os.close(one)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Browser(reading, writing)
        finally:
            process.terminate()
            process.wait()
            os.close(reading)
            os.close(writing)
