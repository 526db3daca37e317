"""RippleEdits: edits with tests of what follows from them and of what must stay.

Source: Cohen et al., Evaluating the Ripple Effects of Knowledge Editing in Language Models (TACL 2024); repository
``edenbiran/RippleEdits``: the README documents a record of ``data/benchmark/{recent,random,popular}.json``,
``src/benchmark.py``, ``src/query.py`` and ``src/fact.py`` write them, ``src/relation.py`` has the wordings. The files
are JSON lists, loaded whole.

A record has ``example_type``, ``edit`` (``prompt``, ``subject_id``, ``relation``, ``target_id``, and
``original_fact`` with the same fields, except in ``recent.json``) and six lists of tests: ``Logical_Generalization``,
``Subject_Aliasing``, ``Compositionality_I``, ``Compositionality_II``, ``Relation_Specificity`` (spelled
``Relation_Specifity`` in the README) and ``Forgetfulness``. A test has ``test_queries`` (``prompt``, ``answers`` as
``[{"value", "aliases"}]``, ...), ``test_condition`` (OR, AND) and ``condition_queries``.

The edit's prompt is a whole sentence, the new answer included, and names neither subject nor answer apart: they are
taken out by the wording of the relation. Where that can be done in more than one way ("... of This is Us is Ann."), a
query about the same subject, which ends before its answer, names it; without one the record is reported, not guessed.

A query may have several answers ("The names of the siblings of X are"), each with aliases. ``src/queryexecutor.py``
asks for all of the answers, each under any of its names; here the first is the probe's answer, and any other one counts
as right too. For a query with one answer the two are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, RecordError
from corsa_plugins.data.formats.building import case_id, make_request, probe_of_answers
from corsa_plugins.data.formats.fields import objects, optional_text, record_at, require_text, texts
from corsa_plugins.data.formats.rippleedits_wordings import WORDINGS, answer_behind, take_apart
from corsa_plugins.data.requests import EditRequest, Probe

__all__ = ["RIPPLE_EDITS", "convert"]

PORTABILITY = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
NEIGHBORHOOD = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One edit with its tests, which is one request.

    Raises:
        RecordError: Saying which field is missing or wrong, or why the sentence cannot be taken apart.
    """
    edit = record_at(record, "edit")
    sentence = require_text(edit, "prompt", "edit.")
    original = None
    if edit.get("original_fact") is not None:
        original = optional_text(record_at(edit, "original_fact", "edit."), "prompt", "edit.original_fact.")
    relation = require_text(edit, "relation", "edit.")
    prompt, new, subject = take_apart(sentence, relation, original, _named(record, edit.get("subject_id")))
    if not new:
        raise RecordError(f"the edit's prompt {sentence!r} has no answer in it")
    request = make_request(
        drops,
        prompt=prompt,
        target_new=new,
        target_old=answer_behind(original, prompt) or None if original and original.startswith(prompt) else None,
        subject=subject,
        portability=_probes(record, PORTABILITY, drops),
        neighborhood=_probes(record, NEIGHBORHOOD, drops),
        case_id=case_id(record, index),
    )
    return [request]


def _named(record: Mapping[str, Any], subject_id: Any) -> str | None:
    """The subject's name, from a query about it that is worded as its relation is and has no wording of its own."""
    if not isinstance(subject_id, str) or not subject_id:
        return None
    for category in (*PORTABILITY, *NEIGHBORHOOD):
        for at, test in enumerate(objects(record, category)):
            for part in ("test_queries", "condition_queries"):
                for query in objects(test, part, f"{category}[{at}]."):
                    prompt, relation = query.get("prompt"), query.get("relation")
                    if query.get("subject_id") != subject_id or query.get("phrase") is not None:
                        continue
                    if not isinstance(prompt, str) or not isinstance(relation, str):
                        continue
                    before, star, after = WORDINGS.get(relation, "").partition("*")
                    if star and prompt.startswith(before) and prompt.endswith(after):
                        name = prompt[len(before) : len(prompt) - len(after)]
                        if name.strip():
                            return name
    return None


def _probes(record: Mapping[str, Any], categories: tuple[str, ...], drops: Drops) -> tuple[Probe, ...]:
    probes = []
    for category in categories:
        for at, test in enumerate(objects(record, category)):
            where = f"{category}[{at}]."
            queries = objects(test, "test_queries", where)
            if test.get("test_condition") == "OR" and len(queries) > 1:
                # One right answer passes the test; asking for all of them would make it harder than it is.
                drops.add(f"{category}[].test_queries (alternatives)", len(queries) - 1)
                queries = queries[:1]
            for number, query in enumerate(queries):
                prompt = require_text(query, "prompt", f"{where}test_queries[{number}].")
                answers = [
                    [text, *_names(answer, f"{where}test_queries[{number}].answers[].", drops, category)]
                    for answer in objects(query, "answers", f"{where}test_queries[{number}].")
                    if (text := optional_text(answer, "value", f"{where}test_queries[{number}].answers[]."))
                ]
                if not answers:
                    drops.add(f"{category}[].test_queries (without an answer)")
                    continue
                made = probe_of_answers(prompt, answers, drops, f"{category}[].test_queries")
                probes += [made] if made else []
    return tuple(probes)


def _names(answer: Mapping[str, Any], where: str, drops: Drops, category: str) -> list[str]:
    aliases = texts(answer, "aliases", where)
    # As src/query.py does: a letter alone, "M" for male, would be found in anything.
    kept = [name for name in aliases if len(name) > 1 or name.isdigit()]
    drops.add(f"{category}[].test_queries[].answers[].aliases (a letter alone)", len(aliases) - len(kept))
    return kept


def _tests(part: str, categories: tuple[str, ...]) -> dict[str, str]:
    return {
        f"{category}[].test_queries[].{name}": f"{part}{note}"
        for category in categories
        for name, note in (
            ("prompt", ""),
            ("answers[].value", ": the first is the answer, others are aliases"),
            ("answers[].aliases", ": aliases"),
        )
    }


RIPPLE_EDITS = Format(
    name="rippleedits",
    description="RippleEdits: recent, random and popular facts with tests of what should and should not change",
    homepage="https://github.com/edenbiran/RippleEdits",
    licence="MIT",
    obtain="the repository's folder data/benchmark: recent.json, random.json, popular.json",
    mapping={
        "edit.prompt": "prompt, target_new and subject, taken apart",
        "edit.relation": "used to take the prompt apart",
        "edit.original_fact.prompt": "target_old",
        **_tests("portability", PORTABILITY),
        **_tests("neighborhood", NEIGHBORHOOD),
        **{
            f"{category}[].test_condition": "OR: the first query is asked; AND: all"
            for category in (*PORTABILITY, *NEIGHBORHOOD)
        },
        "edit.subject_id": "which queries name the subject",
        "case_id": "case_id; the place in the file without one",
    },
    dropped={
        "example_type": "which of the three files it is from",
        "edit": "Wikidata names",
        **{
            f"{category}[].{part}": why
            for category in (*PORTABILITY, *NEIGHBORHOOD)
            for part, why in (
                ("test_queries", "Wikidata names"),
                ("condition_queries", "what the model must know for the test to count: compare with a baseline"),
            )
        },
    },
    signatures=(("edit.prompt", "edit.relation"),),
    convert=convert,
)
