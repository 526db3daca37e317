"""CodeUpdateArena: synthetic updates of library functions, with programming problems that need them.

Source: Liu et al., CodeUpdateArena: Benchmarking Knowledge Editing on API Updates (2024); repository
``leo-liuzy/CodeUpdateArena`` (``DATACARD.md`` documents a record of ``data/arena-ungrouped.jsonl``, the folder
``prompts`` the prompts), data set ``leo-liuzy/CodeUpdateArena`` on the Hub. Used by CoRSA, section 5.3 and appendix
A.1. JSON Lines, read line by line.

A record is one problem: ``update`` (``description``, ``rationale``, ``docstring``, ``signature``, ``imports``,
``implementation``, ``unit_tests``, ``update_type``, ``function_path``, ``package``, ``update_id``), ``update_id``,
``scenario``, ``problem``, ``solution_signature``, ``unit_tests``, ``imports``, ``ref_solution`` and ``prog_syn_id``.
The repository's ``data/example_datum.json`` has the problem's fields within ``prog_syn``, the update's under longer
names, and its id as ``specific_update_id``.

As in CoRSA's appendix, one problem of every update is the edit, the first, and the others are there to evaluate on:
its portability probes. The prompt gives scenario, problem, signature and one unit test, as the benchmark does; the
target is the reference solution. ``codeupdatearena`` asks the problem alone (the benchmark's FT (PS));
``codeupdatearena-update`` puts a note about the update in front of the edit prompt (FT (U+PS)), while paraphrase and
probes ask without it. CoRSA's own prompt for code is a figure that says nothing in text; these prompts are worded here.

The benchmark's measure, UPass, runs the unit tests on generated code. Nothing here runs code: compare probabilities
of the reference solutions, or run the tests with the benchmark's own harness.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, HubSource
from corsa_plugins.data.formats.building import make_request, probe
from corsa_plugins.data.formats.fields import optional_text, record_at, require_text, texts
from corsa_plugins.data.requests import EditRequest

__all__ = ["CODE_UPDATE_ARENA", "CODE_UPDATE_ARENA_UPDATE", "convert", "convert_with_update", "group_by_update"]


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One programming problem, which is one request until :func:`group_by_update`.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    record = _flat(record)
    name = f"{_update_id(record)}:{_problem_id(record, index)}"
    return [
        make_request(drops, prompt=_task(record, drops), target_new=require_text(record, "ref_solution"), case_id=name)
    ]


def convert_with_update(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """The same, with a note about the update in front of the prompt and the problem alone as its paraphrase.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    record = _flat(record)
    update = record_at(record, "update")
    path, signature = require_text(update, "function_path", "update."), require_text(update, "signature", "update.")
    note = f"Update of `{path}`: {require_text(update, 'description', 'update.')}\nNew signature: `{signature}`\n"
    docstring = optional_text(update, "docstring", "update.")
    note += f"{docstring}\n" if docstring else ""
    task = _task(record, drops)
    request = make_request(
        drops,
        prompt=f"{note}\n{task}",
        target_new=require_text(record, "ref_solution"),
        paraphrases=[task],
        case_id=f"{_update_id(record)}:{_problem_id(record, index)}",
    )
    return [request]


def group_by_update(requests: list[EditRequest]) -> list[EditRequest]:
    """The first problem of every update, the update's other problems as its portability probes."""
    groups: dict[str, list[EditRequest]] = {}
    for request in requests:
        groups.setdefault(str(request.case_id).rpartition(":")[0], []).append(request)
    return [
        first.model_copy(
            update={
                "portability": tuple(
                    probe(other.paraphrases[0] if other.paraphrases else other.prompt, other.target_new)
                    for other in others
                )
            }
        )
        for first, *others in groups.values()
    ]


# Some tests have a comment or a decorator above them, and blank lines with spaces in them.
_NEXT_TEST = re.compile(r"\n(?:[ \t]*\n)+(?=(?:[#@][^\n]*\n)*def )")


_LONGER_NAMES = {
    "description": "update_description", "docstring": "update_docstring", "signature": "new_function_signature",
    "function_path": "api_path",
}  # fmt: skip
"""What the nested form calls the fields of an update."""


def _flat(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of the nested form in the other one."""
    if "prog_syn" not in record:
        return record
    update = record_at(record, "update")
    named = {name: update[longer] for name, longer in _LONGER_NAMES.items() if longer in update}
    ids = {"update_id": record.get("specific_update_id"), "prog_syn_id": record.get("prog_syn_id")}
    return {**record_at(record, "prog_syn"), "update": {**update, **named}, **ids}


def _task(record: Mapping[str, Any], drops: Drops) -> str:
    lines = ["Write a Python function that solves this problem. Answer with the code alone."]
    scenario = optional_text(record, "scenario")
    lines += [f"Scenario: {scenario}"] if scenario else []
    lines.append(f"Problem: {require_text(record, 'problem')}")
    signature = optional_text(record, "solution_signature")
    lines += [f"Signature: {signature}"] if signature else []
    # Tests come joined by empty lines, or as a list; one is public, as in the benchmark's configuration.
    tests = [test.rstrip() for text in texts(record, "unit_tests") for test in _NEXT_TEST.split(text)]
    drops.add("unit_tests (beyond the first)", len(tests) - 1)
    lines += [f"Test:\n{tests[0]}"] if tests else []
    return "\n".join([*lines, "Solution:"])


def _update_id(record: Mapping[str, Any]) -> str:
    text = optional_text(record, "update_id")
    return text if text else require_text(record_at(record, "update"), "update_id", "update.")


def _problem_id(record: Mapping[str, Any], index: int) -> str:
    text = optional_text(record, "prog_syn_id")
    return text.rpartition(":")[2] if text else str(index)


_TASK_FIELDS = {
    "scenario": "prompt",
    "problem": "prompt",
    "solution_signature": "prompt",
    "unit_tests": "prompt (the first test)",
    "ref_solution": "target_new",
    "update_id": "which problems belong together; case_id",
    "update.update_id": "the same, when it is only there",
    "prog_syn_id": "case_id",
    "specific_update_id": "the same as update_id, in the nested form",
}
_TASK_FIELDS |= {
    f"prog_syn.{name}": _TASK_FIELDS[name]
    for name in ("scenario", "problem", "solution_signature", "unit_tests", "ref_solution")
}
_DROPPED = {
    "update.rationale": "why the update was made",
    "update.imports": "needed to run the code",
    "update.implementation": "the new function itself, which no model is asked for",
    "update.unit_tests": "tests of the new function, to be run",
    "update.update_type": "a kind",
    "update.package": "a kind",
    "imports": "needed to run the code",
    "prog_syn_imports": "the same, in the first release",
}
_UPDATE_FIELDS = ("description", "docstring", "signature", "function_path")

CODE_UPDATE_ARENA = Format(
    name="codeupdatearena",
    description="CodeUpdateArena: a problem that needs an updated function, asked alone; one request an update",
    homepage="https://github.com/leo-liuzy/CodeUpdateArena",
    licence="MIT",
    obtain="the Hub, or data/arena-ungrouped.jsonl of the repository",
    mapping=_TASK_FIELDS,
    dropped={
        **_DROPPED,
        **{
            f"update.{name}": "the update is not told; format codeupdatearena-update tells it"
            for name in (*_UPDATE_FIELDS, *_LONGER_NAMES.values())
        },
    },
    signatures=(("update", "problem", "ref_solution"), ("update", "prog_syn")),
    convert=convert,
    finish=group_by_update,
    hub=HubSource("leo-liuzy/CodeUpdateArena", ("test",), {"test": "arena-ungrouped.jsonl"}),
)

CODE_UPDATE_ARENA_UPDATE = Format(
    name="codeupdatearena-update",
    description="CodeUpdateArena: the same, with a note about the update in front of the edit prompt",
    homepage=CODE_UPDATE_ARENA.homepage,
    licence=CODE_UPDATE_ARENA.licence,
    obtain=CODE_UPDATE_ARENA.obtain,
    mapping={
        **_TASK_FIELDS,
        **{f"update.{name}": "prompt, before the problem" for name in (*_UPDATE_FIELDS, *_LONGER_NAMES.values())},
    },
    dropped=_DROPPED,
    signatures=CODE_UPDATE_ARENA.signatures,
    convert=convert_with_update,
    finish=group_by_update,
    hub=CODE_UPDATE_ARENA.hub,
)
