"""CodeUpdateArena: synthetic updates of library functions, with programming problems that need them.

Source: Liu et al., CodeUpdateArena: Benchmarking Knowledge Editing on API Updates (2024); repository
``leo-liuzy/CodeUpdateArena`` (``DATACARD.md`` documents a record of ``data/arena-ungrouped.jsonl``, the folder
``prompts`` the prompts), data set ``leo-liuzy/CodeUpdateArena`` on the Hub. Used by CoRSA, section 5.3 and appendix
A.1. JSON Lines, read line by line.

A record is one problem: ``update`` (``description``, ``rationale``, ``docstring``, ``signature``, ``imports``,
``implementation``, ``unit_tests``, ``update_type``, ``function_path``, ``package``, ``update_id``), ``update_id``,
``scenario``, ``problem``, ``solution_signature``, ``unit_tests``, ``imports``, ``ref_solution`` and ``prog_syn_id``.
The repository's ``data/example_datum.json`` has the problem's fields within ``prog_syn``, the update's under longer
names, and its id as ``specific_update_id``. Its ``data/arena.jsonl`` has a record for every update, with all of its
problems in the list ``prog_syn_examples``.

As in CoRSA's appendix, one problem of every update is the edit, the first, and the others are there to evaluate on:
its portability probes. The prompt gives scenario, problem, signature and one unit test, as the benchmark does; the
target is the reference solution; where the update is a new argument or another name, the outdated answer is the same
solution as it was written for the old function (:mod:`~corsa_plugins.data.formats.code_before`), and elsewhere the
model's own (``corsa train --fill_target_old --whole_answers``). ``codeupdatearena`` asks the problem alone (FT (PS));
``codeupdatearena-update`` puts a note about the update in front of the edit prompt (FT (U+PS)), while paraphrase and
probes ask without it. CoRSA's own prompt for code is a figure that says nothing in text; these prompts are worded here.

The benchmark's measure, UPass, runs the unit tests on generated code: :func:`code_problems` makes the problems for
``corsa evaluate-code``. Nothing here runs code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.code_problems import CodeProblem
from corsa_plugins.data.formats.base import Drops, Format, HubSource
from corsa_plugins.data.formats.building import make_request, probe
from corsa_plugins.data.formats.codeupdatearena_record import (
    FUNCTION,
    LONGER_NAMES,
    called,
    name_of,
    note_of,
    problems_in,
    solution_before,
    task_of,
    tests_of,
    update_in_place,
)
from corsa_plugins.data.formats.fields import optional_text, require_text, texts
from corsa_plugins.data.requests import EditRequest

__all__ = [
    "CODE_UPDATE_ARENA",
    "CODE_UPDATE_ARENA_UPDATE",
    "code_problems",
    "convert",
    "convert_with_update",
    "group_by_update",
]


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """The programming problems of a record, each of which is a request until :func:`group_by_update`.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    return [
        make_request(
            drops,
            prompt=task_of(each, drops),
            target_new=require_text(each, "ref_solution"),
            target_old=solution_before(each),
            case_id=name_of(each, index),
        )
        for each in problems_in(record)
    ]


def convert_with_update(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """The same, with a note about the update in front of the prompt and the problem alone as its paraphrase.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    requests = []
    for each in problems_in(record):
        task = task_of(each, drops)
        request = make_request(
            drops,
            prompt=f"{note_of(each)}\n{task}",
            target_new=require_text(each, "ref_solution"),
            target_old=solution_before(each),
            paraphrases=[task],
            case_id=name_of(each, index),
        )
        requests.append(request)
    return requests


def code_problems(record: Mapping[str, Any], index: int) -> list[CodeProblem]:
    """The problems of a record with their tests, without those that have none or whose update cannot be put in place.

    Raises:
        RecordError: A field is wrong.
    """
    return [problem for each in problems_in(record) if (problem := _code_problem(each, index)) is not None]


def _code_problem(record: Mapping[str, Any], index: int) -> CodeProblem | None:
    tests = [text for test in tests_of(record) if (text := called(test)) is not None]
    update = update_in_place(record)
    solution = require_text(record, "ref_solution")
    wanted = FUNCTION.search(optional_text(record, "solution_signature") or "") or FUNCTION.search(solution)
    if not tests or update is None or wanted is None:
        return None
    return CodeProblem(
        task_id=name_of(record, index),
        prompt=task_of(record, Drops()),
        entry_point=wanted[1],
        note=note_of(record),
        setup="\n".join(texts(record, "imports") or texts(record, "prog_syn_imports")),
        update=update,
        tests=tuple(tests),
        reference=solution,
    )


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
    "update.implementation": "target_old: the solution without the arguments that are new",
    "update.new_impl": "the same, in the nested form",
    "update.old_signature": "target_old: which arguments are new, in the nested form",
    "update.update_type": "target_old: whether the function was renamed",
}
_TASK_FIELDS |= {
    f"{within}.{name}": _TASK_FIELDS[name]
    for within in ("prog_syn", "prog_syn_examples[]")
    for name in ("scenario", "problem", "solution_signature", "unit_tests", "ref_solution")
}
_TASK_FIELDS["prog_syn_examples[].prog_syn_id"] = _TASK_FIELDS["prog_syn_id"]
_DROPPED = {
    "update.rationale": "why the update was made",
    "update.imports": "needed to run the code: --to-problems",
    "update.unit_tests": "tests of the new function itself",
    "update.package": "a kind",
    "imports": "needed to run the code: --to-problems",
    "prog_syn_imports": "the same, in the first release",
    "prog_syn_examples[].imports": "the same, in the grouped form",
    "prog_syn_examples[].prog_syn_imports": "the same, in the first release of the grouped form",
}
_UPDATE_FIELDS = ("description", "docstring", "signature", "function_path")
_LONGER_FIELDS = [LONGER_NAMES[name] for name in _UPDATE_FIELDS]

CODE_UPDATE_ARENA = Format(
    name="codeupdatearena",
    description="CodeUpdateArena: a problem that needs an updated function, asked alone; one request an update",
    homepage="https://github.com/leo-liuzy/CodeUpdateArena",
    licence="MIT",
    obtain="the Hub, or data/arena.jsonl of the repository",
    mapping=_TASK_FIELDS,
    dropped={
        **_DROPPED,
        **{
            f"update.{name}": "the update is not told; format codeupdatearena-update tells it"
            for name in (*_UPDATE_FIELDS, *_LONGER_FIELDS)
        },
    },
    signatures=(
        ("update", "problem", "ref_solution"),
        ("update", "prog_syn"),
        ("update", "prog_syn_examples[].ref_solution"),
    ),
    convert=convert,
    code=code_problems,
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
        **{f"update.{name}": "prompt, before the problem" for name in (*_UPDATE_FIELDS, *_LONGER_FIELDS)},
    },
    dropped=_DROPPED,
    signatures=CODE_UPDATE_ARENA.signatures,
    convert=convert_with_update,
    code=code_problems,
    finish=group_by_update,
    hub=CODE_UPDATE_ARENA.hub,
)
