"""What a record of CodeUpdateArena holds, in each of its published forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, RecordError
from corsa_plugins.data.formats.code_before import new_parameters, program_before
from corsa_plugins.data.formats.fields import objects, optional_text, record_at, require_text, texts

__all__ = [
    "FUNCTION", "LONGER_NAMES", "called", "name_of", "note_of", "problems_in", "solution_before", "task_of", "tests_of",
    "update_in_place",
]  # fmt: skip

FUNCTION = re.compile(r"^\s*def\s+([^\W\d]\w*)", re.MULTILINE)
_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def called(test: str) -> str | None:
    """A test that calls itself: what is written is a function."""
    function = FUNCTION.search(test)
    return f"{test}\n\n{function[1]}()" if function else None


def update_in_place(record: Mapping[str, Any]) -> str | None:
    """Python that puts the updated function in the place of the old one, as the benchmark does: a function that was
    renamed is no longer there by its old name."""
    update = record_at(record, "update")
    implementation = optional_text(update, "implementation", "update.")
    path = require_text(update, "function_path", "update.")
    if implementation is None or not _PATH.fullmatch(path):
        return None
    function = FUNCTION.search(implementation)
    if function is None:
        return None
    owner, _, old = path.rpartition(".")
    lines = [*texts(update, "imports", "update."), implementation, f"import {owner.partition('.')[0]}"]
    if _renamed(update) and function[1] != old:
        lines.append(f"del {owner}.{old}")
    return "\n".join([*lines, f"{owner}.{function[1]} = {function[1]}"])


def _renamed(update: Mapping[str, Any]) -> bool:
    return optional_text(update, "update_type", "update.") == "modify-function-name"


def solution_before(record: Mapping[str, Any]) -> str | None:
    """The reference solution as it was written for the old function, where its text can tell."""
    update = record_at(record, "update") if "update" in record else {}
    implementation = optional_text(update, "implementation", "update.")
    path = optional_text(update, "function_path", "update.")
    function = FUNCTION.search(implementation or "")
    if implementation is None or function is None or path is None:
        return None
    old = path.rpartition(".")[2]
    return program_before(
        require_text(record, "ref_solution"),
        function[1],
        old_name=old if _renamed(update) and old != function[1] else None,
        new=new_parameters(implementation, optional_text(update, "old_signature", "update.")),
    )


def note_of(record: Mapping[str, Any]) -> str:
    """What was updated, in words."""
    update = record_at(record, "update")
    path, signature = require_text(update, "function_path", "update."), require_text(update, "signature", "update.")
    note = f"Update of `{path}`: {require_text(update, 'description', 'update.')}\nNew signature: `{signature}`\n"
    docstring = optional_text(update, "docstring", "update.")
    return note + (f"{docstring}\n" if docstring else "")


def name_of(record: Mapping[str, Any], index: int) -> str:
    """Of the update, and of the problem behind a colon."""
    return f"{_update_id(record)}:{_problem_id(record, index)}"


# Some tests have a comment or a decorator above them, and blank lines with spaces in them.
_NEXT_TEST = re.compile(r"\n(?:[ \t]*\n)+(?=(?:[#@][^\n]*\n)*def )")


LONGER_NAMES = {
    "description": "update_description", "docstring": "update_docstring", "signature": "new_function_signature",
    "function_path": "api_path", "implementation": "new_impl",
}  # fmt: skip
"""What the nested form calls the fields of an update."""


def problems_in(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The problems of a record of any form, each as a record of the form that has one alone.

    Raises:
        RecordError: There is none.
    """
    if "prog_syn_examples" in record:
        update, examples = record_at(record, "update"), objects(record, "prog_syn_examples")
        if not examples:
            raise RecordError("field 'prog_syn_examples' has no problem in it")
        name = optional_text(record, "update_id") or require_text(update, "update_id", "update.")
        return [
            {**each, "prog_syn_id": each.get("prog_syn_id") or str(at), "update": update, "update_id": name}
            for at, each in enumerate(examples)
        ]
    if "prog_syn" not in record:
        return [record]
    update = record_at(record, "update")
    named = {name: update[longer] for name, longer in LONGER_NAMES.items() if longer in update}
    ids = {"update_id": record.get("specific_update_id"), "prog_syn_id": record.get("prog_syn_id")}
    return [{**record_at(record, "prog_syn"), "update": {**update, **named}, **ids}]


def task_of(record: Mapping[str, Any], drops: Drops) -> str:
    """What a model is asked: the problem with the first of its tests."""
    lines = ["Write a Python function that solves this problem. Answer with the code alone."]
    scenario = optional_text(record, "scenario")
    lines += [f"Scenario: {scenario}"] if scenario else []
    lines.append(f"Problem: {require_text(record, 'problem')}")
    signature = optional_text(record, "solution_signature")
    lines += [f"Signature: {signature}"] if signature else []
    tests = tests_of(record)  # one is public, as in the benchmark's configuration
    drops.add("unit_tests (beyond the first)", len(tests) - 1)
    lines += [f"Test:\n{tests[0]}"] if tests else []
    return "\n".join([*lines, "Solution:"])


def tests_of(record: Mapping[str, Any]) -> list[str]:
    """Tests come joined by empty lines, or as a list."""
    return [test.rstrip() for text in texts(record, "unit_tests") for test in _NEXT_TEST.split(text)]


def _update_id(record: Mapping[str, Any]) -> str:
    text = optional_text(record, "update_id")
    return text if text else require_text(record_at(record, "update"), "update_id", "update.")


def _problem_id(record: Mapping[str, Any], index: int) -> str:
    text = optional_text(record, "prog_syn_id")
    return text.rpartition(":")[2] if text else str(index)
