"""Whether what was written does what was asked: run, with the update in place and without."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from corsa_plugins.bench.code.tasks import CodeTask
from corsa_plugins.sandbox import Outcome, Sandbox

__all__ = ["Verdict", "judge"]

_HARNESS = '''
import ast, json, os, sys

given = json.loads(sys.stdin.read())
word = given.pop("word")


def report(what, why=""):
    os.write(3, json.dumps([word, what, str(why)[:500]]).encode())


def program(texts, function):
    """The longest beginning, in lines, of the first text of which one is Python that makes the function."""
    for text in texts:
        lines = text.splitlines()[:1000]
        for end in range(len(lines), 0, -1):
            try:
                tree = ast.parse("\\n".join(lines[:end]))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            if function in {getattr(node, "name", None) for node in tree.body} or any(
                getattr(target, "id", None) == function for node in tree.body for target in getattr(node, "targets", ())
            ):
                return "\\n".join(lines[:end])
            break
    return None


def main():
    code = program(given["programs"], given["function"])
    if code is None:
        return report("no program")
    space = {"__name__": "solution"}
    try:
        exec(compile(given["setup"], "setup", "exec"), space)
        exec(compile(given["update"], "update", "exec"), {"__name__": "update"})
    except BaseException as error:
        return report("not set up", f"{type(error).__name__}: {error}")
    try:
        exec(compile(code, "solution", "exec"), space)
        for test in given["tests"]:
            exec(compile(test, "test", "exec"), space)
    except BaseException as error:
        return report("failed", f"{type(error).__name__}: {error}")
    report("passed")


main()
'''
"""What runs in the sandbox, in front of what was written: an answer that ends the process has passed nothing, as only
who knows the word can say that the tests were passed. (Who means to can find it, or satisfy tests without solving the
problem: the sandbox is there to hold programs, not to make them honest.)"""


@dataclass(frozen=True)
class Verdict:
    """What came of an answer.

    Attributes:
        passed: Whether it passes all tests; of an update, that it also does not pass them all without the update.
        what: ``"passed"``; ``"failed"``: a test, or the program itself, raised; ``"no program"``: nothing in the
            answer is Python that makes the function; ``"not needed"``: all tests pass without the update too;
            ``"not set up"``: the update cannot be put in place here, whatever the answer; ``"time"``, ``"output"``,
            ``"left"``, ``"ended"``: it had to be stopped, or ended the process.
        why: The error's type and message, cut.
    """

    passed: bool
    what: str
    why: str = ""


def judge(task: CodeTask, answer: str, sandbox: Sandbox) -> Verdict:
    """Run an answer's program with the tests, and where a task has an update, without the update as well (UPass of Liu
    et al., 2024: what passes with the update and not without it has used it).

    The tests of a task share a process, and end with the first that fails.

    Raises:
        SandboxError: The sandbox cannot be made.
    """
    verdict = _run(task, answer, task.update, sandbox)
    if verdict.passed and task.update and _run(task, answer, "", sandbox).passed:
        return Verdict(False, "not needed")
    return verdict


def _run(task: CodeTask, answer: str, update: str, sandbox: Sandbox) -> Verdict:
    word = secrets.token_hex(16)
    given = {
        "word": word,
        "programs": task.programs(answer),
        "function": task.entry_point,
        "setup": task.setup,
        "update": update,
        "tests": task.tests,
    }
    return _verdict(sandbox.run(_HARNESS, json.dumps(given).encode("ascii")), word)


def _verdict(outcome: Outcome, word: str) -> Verdict:
    if outcome.end != "exit":
        return Verdict(False, outcome.end)
    try:
        said, what, why = json.loads(outcome.report)
    except ValueError:
        said, what, why = "", "", ""
    if said != word:
        tail = outcome.output.decode(errors="replace").strip().rpartition("\n")[2][-200:]
        return Verdict(False, "ended", f"exit status {outcome.code}{': ' if tail else ''}{tail}")
    return Verdict(what == "passed", str(what), str(why))
