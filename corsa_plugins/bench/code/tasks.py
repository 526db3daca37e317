"""What is asked, and what is run of what was written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from corsa_plugins.data.code_problems import CodeProblem, HumanEvalProblem

__all__ = ["SPECIFICITY", "UPDATE", "CodeTask", "humaneval_task", "update_task"]

UPDATE, SPECIFICITY = "update", "specificity"

_BLOCK = re.compile(r"(?:```[\w+-]*[ \t]*\n|\[PYTHON\])(.*?)(?:```|\[/PYTHON\]|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CodeTask:
    """A problem, as it is asked and run.

    Attributes:
        kind: :data:`UPDATE` of one that needs an update, :data:`SPECIFICITY` of an unrelated one.
        task_id: Its name.
        prompt: What the model is given.
        entry_point: The function that is tested.
        setup: Python that runs before all else.
        update: What puts an update in place; empty of unrelated ones.
        tests: Each Python that raises where the solution is wrong.
        reference: A right answer.
        begun: Python that an answer goes on with, where it does not begin anew.
        trained: Whether it was trained on.
    """

    kind: str
    task_id: str
    prompt: str
    entry_point: str
    setup: str
    update: str
    tests: tuple[str, ...]
    reference: str
    begun: str = ""
    trained: bool = False

    def programs(self, answer: str) -> list[str]:
        """What may be meant by an answer, the likeliest first: fenced blocks, then the whole of it. Where the answer
        says the function anew, what is begun is there only up to it. Which of them is a program is seen where it runs,
        and nothing of it is parsed here."""
        blocks = [match[1] for match in _BLOCK.finditer(answer)]
        return [self._whole(text) for text in [*blocks, answer] if text.strip()]

    def _whole(self, text: str) -> str:
        function = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(self.entry_point)}\b", re.MULTILINE)
        if not self.begun:
            return text.lstrip()
        if function.search(text) is None:
            return self.begun + text
        first = function.search(self.begun)
        return self.begun[: first.start() if first else 0] + text.lstrip()


def update_task(problem: CodeProblem, *, prepend: bool = False) -> CodeTask:
    """A problem that needs an update; ``prepend`` tells the update in front of it."""
    return CodeTask(
        UPDATE,
        problem.task_id,
        f"{problem.note}\n{problem.prompt}" if prepend else problem.prompt,
        problem.entry_point,
        problem.setup,
        problem.update,
        problem.tests,
        problem.reference,
        trained=problem.trained,
    )


_GO_ON = "Complete this Python function. Answer with the code alone, of the whole function.\n\n"


def humaneval_task(problem: HumanEvalProblem, *, instruct: bool = False) -> CodeTask:
    """An unrelated problem; ``instruct`` says in words that it is to be gone on with, as to a model that chats."""
    return CodeTask(
        SPECIFICITY,
        problem.task_id,
        _GO_ON + problem.prompt if instruct else problem.prompt,
        problem.entry_point,
        "",
        "",
        (f"{problem.test}\n\ncheck({problem.entry_point})",),
        problem.canonical_solution,
        begun=problem.prompt,
    )
