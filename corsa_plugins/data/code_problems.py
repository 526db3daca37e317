"""Programming problems, whose answers are told right from wrong by running them.

As a line of a file that ``corsa convert --to-problems`` writes::

    {"task_id": "math.hypot-1", "prompt": "Write a Python function ...", "entry_point": "distance",
     "note": "Update of `math.hypot`: an argument `scale` is added.", "setup": "import math",
     "update": "def hypot(...): ...\\nimport math\\nsetattr(math, 'hypot', hypot)",
     "tests": ["def test_a(): ...\\n\\ntest_a()"], "reference": "def distance(...): ..."}
"""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import ConfigDict, Field, StrictBool

from corsa_plugins.data.reading import read_records, write_records
from corsa_plugins.data.records import Record, Text

__all__ = ["CodeProblem", "HumanEvalProblem", "read_humaneval", "read_problems", "write_problems"]

_Name = Annotated[Text, Field(pattern=r"^[^\W\d]\w*$")]


class CodeProblem(Record):
    """A problem that needs an update of a function.

    Attributes:
        task_id: Its name.
        prompt: What the model is asked; the update is not in it.
        entry_point: The function that is asked for.
        note: What was updated, in words; the ``prepend`` baseline puts it in front of the prompt.
        setup: Imports and what else is there before the update, Python.
        update: What puts the updated function in the place of the old one, Python that imports what it needs itself.
        tests: Each Python that raises where the solution, run before it, is wrong.
        reference: A right solution.
        trained: Whether it was trained on, as an edit request.
    """

    task_id: Text
    prompt: Text
    entry_point: _Name
    note: Text
    setup: str = ""
    update: Text
    tests: Annotated[tuple[Text, ...], Field(min_length=1)]
    reference: Text
    trained: StrictBool = False


class HumanEvalProblem(Record):
    """A problem in HumanEval's format (Chen et al., 2021, arXiv 2107.03374): a function to go on with.

    Fields of other publications of it, such as inputs of further tests, are passed over.

    Attributes:
        task_id: Its name.
        prompt: Python up to the end of the function's docstring.
        entry_point: The function.
        canonical_solution: A right end of the prompt.
        test: Python that defines ``check``, which is called with the function and raises where it is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task_id: Text
    prompt: Text
    entry_point: _Name
    canonical_solution: Text
    test: Text


def read_problems(path: str | os.PathLike[str]) -> list[CodeProblem]:
    """Read problems from JSON Lines.

    Raises:
        RequestError: Listing together, by line, everything that is wrong.
    """
    return read_records(path, CodeProblem)


def write_problems(path: str | os.PathLike[str], problems: list[CodeProblem]) -> None:
    """Write problems as JSON Lines, completely or not at all.

    Raises:
        RequestError: There are none.
        OSError: The file cannot be written.
    """
    write_records(path, problems, "problems with tests")


def read_humaneval(path: str | os.PathLike[str]) -> list[HumanEvalProblem]:
    """Read problems of HumanEval's format from JSON Lines.

    Raises:
        RequestError: Listing together, by line, everything that is wrong.
    """
    return read_records(path, HumanEvalProblem)
