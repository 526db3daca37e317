"""Problems of code, and a small model that writes known programs for them."""

from __future__ import annotations

from corsa_plugins.bench.code import CodeTask, humaneval_task, update_task
from corsa_plugins.data.code_problems import CodeProblem, HumanEvalProblem

NEW = "import math\ndef far(a, b): return math.hypot(a, b, scale=2)"
OLD = "import math\ndef far(a, b): return math.hypot(a, b)"

UPDATE = """import math
old_hypot = math.hypot
def hypot(*coordinates, scale=1):
    return old_hypot(*coordinates) * scale
math.hypot = hypot"""


def problem(task_id: str = "far", **changes) -> CodeProblem:
    """One that needs ``math.hypot(..., scale=...)``."""
    fields = {
        "task_id": task_id,
        "prompt": f"{task_id}:",
        "entry_point": "far",
        "note": "hypot has scale.",
        "setup": "import math",
        "update": UPDATE,
        "tests": ("def test_a():\n    assert far(3, 4) == 10\n\ntest_a()", "assert far(6, 8) == 20"),
        "reference": NEW,
    }
    return CodeProblem(**{**fields, **changes})


def humaneval(task_id: str = "H/0", **changes) -> HumanEvalProblem:
    """One of HumanEval's format."""
    fields = {
        "task_id": task_id,
        "prompt": 'import math\n\n\ndef inc(x):\n    """One more."""\n',
        "entry_point": "inc",
        "canonical_solution": "    return x + 1\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n",
    }
    return HumanEvalProblem(**{**fields, **changes})


UPDATES = [problem("far"), problem("old"), problem("seen", trained=True)]
INC = humaneval(prompt="def inc(x):\n")
SAID = {"far:": NEW, "old:": OLD, "hypot has scale.\nold:": NEW, "seen:": NEW, "def inc(x):\n": "    return x + 1"}
"""What the small model was taught: a new program for one problem, for another only where it is told of the update."""


def code_tasks() -> list[CodeTask]:
    """All of them, as they are asked."""
    return [*(update_task(each) for each in UPDATES), humaneval_task(INC)]
