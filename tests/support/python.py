"""Python in a process of its own, also without some packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import corsa_plugins

ROOT = Path(corsa_plugins.__file__).parent.parent
FRAMEWORKS = {"trl", "peft", "datasets", "accelerate", "easyeditor", "mergekit", "lm_eval"}

BLOCKER = """
import sys

class Without:
    # a finder that does not find what is blocked, as if it were not installed
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
"""


def python(code):
    """What ``code`` prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_of(text):
    """The one line of an error in what a process wrote; packages that are installed may warn before it."""
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert text.rstrip().endswith(line)
    return line


def blocked(modules, code):
    """What ``code`` prints where ``modules`` are not installed."""
    return python(f"BLOCKED = {set(modules)!r}\n{BLOCKER}\n{code}")
