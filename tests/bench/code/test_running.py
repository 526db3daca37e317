"""What is run of an answer, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corsa_plugins.bench.code import humaneval_task, judge, update_task
from tests.support.code import NEW, OLD, humaneval, problem


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (NEW, "passed"),
        (f"Here it is:\n```python\n{NEW}\n```\nIt scales.", "passed"),
        (f"[PYTHON]\n{NEW}\n[/PYTHON]", "passed"),
        (f"```\nprint('first')\n```\nand then\n```python\n{NEW}\n```", "passed"),
        (f" {NEW}\n\nProblem: something else, and on it goes", "passed"),
        (OLD, "failed"),
        ("import math\ndef far(a, b): return 2 * math.hypot(a, b)", "not needed"),
        ("import math\ndef far(a, b): return math.hypot(a, b, scale=3)", "failed"),
        ("I cannot do that.", "no program"),
        ("def near(a, b): return 10", "no program"),
        ("", "no program"),
        ("def far(a, b): return (", "no program"),
        (f"{NEW}\nraise SystemExit(0)", "failed"),
        (f"{NEW}\nimport os\nos._exit(0)", "ended"),
        (f'{NEW}\nimport os\nos.write(3, b\'[0, "passed", ""]\')\nos._exit(0)', "ended"),
        ("def far(a, b): return far(a, b)", "failed"),
        ("def far(a, b):\n    print('passed')\n    return 10", "failed"),
        ("def far(a, b):\n    while True: print('x' * 1000)", "output"),
        ("def far(a, b):\n    import os; os.kill(os.getpid(), 9)", "ended"),
    ],
)
def test_an_answer_passes_where_it_passes_with_the_update_alone(answer, what, sandbox):
    verdict = judge(update_task(problem()), answer, sandbox)
    assert (verdict.what, verdict.passed) == (what, what == "passed"), verdict


def test_an_update_that_cannot_be_put_in_place_is_told_apart(sandbox):
    verdict = judge(update_task(problem(update="import no_such_module")), NEW, sandbox)
    assert verdict.what == "not set up"
    assert "no_such_module" in verdict.why


def test_an_answer_in_time(sandbox):
    short = replace(sandbox, limits=replace(sandbox.limits, seconds=1.5))
    assert judge(update_task(problem()), "def far(a, b):\n    import time; time.sleep(99)", short).what == "time"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("    return x + 1\n", "passed"),
        ("    return x + 1\n\n\ndef other(x):\n    return (", "passed"),
        ("    return x + 1\n\nprint(inc('a'))", "failed"),
        ("```python\ndef inc(x):\n    return x + 1\n```", "passed"),
        ("```python\n    return x + 1\n```", "passed"),
        ("def inc(x):\n    return x + int(math.sqrt(1))", "passed"),  # with the imports of the prompt
        ("    return x\n", "failed"),
        ("", "no program"),
    ],
)
def test_a_function_is_gone_on_with_or_said_anew(answer, what, sandbox):
    verdict = judge(humaneval_task(humaneval()), answer, sandbox)
    assert verdict.what == what, verdict


def test_the_update_is_told_in_front_of_the_problem_alone():
    told = update_task(problem(), prepend=True)
    assert told.prompt == "hypot has scale.\nfar:"
    assert replace(told, prompt="far:") == update_task(problem())
