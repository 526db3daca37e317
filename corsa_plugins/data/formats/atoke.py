"""AToKe: facts that changed several times, with the years in which each answer held.

Source: Yin et al., History Matters: Temporal Knowledge Editing in Large Language Model (AAAI 2024); repository
``Arvid-pku/ATOKE``, whose README documents a record of ``AToKe-ME.json``. The structure is the one described
there; the files themselves have not been compared with it.

A case has ``case_id``; ``requested_rewrite``, in the order of time (in ``AToKe-SE.json`` one, possibly not in a list):
``prompt`` and ``time_prompt`` with ``{}``, ``subject``, ``target_new`` and ``target_true`` (``{"str", "id"}``),
``time_new`` and ``time_true`` (``since``, ``until``), ``relation``, and ``evaluation``; ``history_evaluation``, one
entry for each rewrite; and ``answer``, ``answer_alias``, ``new_answer``, ``new_answer_alias``, each a list for every
rewrite. An evaluation has ``completion``, ``questions``, ``paraphrase_completion``, and the same three with years in
them: ``time_completion``, ``time_questions``, ``paraphrase_time_completion``.

Each rewrite is one request, ``CASE-K`` with K from 1 in the order of time. Rewrites of a case ask the same prompt for
different answers, so they belong to successive updates: :func:`corsa_plugins.data.formats.split_rounds`. What becomes
of an evaluation: without years it is a paraphrase; with the years of the new answer it follows from the edit
(portability); with years of the earlier answer it stays true (neighborhood); what *was* the case before, without
years, follows from the edit (portability). A step's aliases count as right answers of its probes; an edit itself has
none. In ``AToKe-EE.json`` the answer stays and only its years are extended: its records are reported as having nothing
to edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, RecordError
from corsa_plugins.data.formats.building import case_id, fill, make_request, place_subject, probe
from corsa_plugins.data.formats.fields import objects, record_at, require_text, texts, texts_in
from corsa_plugins.data.formats.mquake import target
from corsa_plugins.data.requests import EditRequest, Probe

__all__ = ["ATOKE_ME", "convert"]

WITHOUT_YEARS = ("completion", "questions", "paraphrase_completion")
WITH_YEARS = ("time_completion", "time_questions", "paraphrase_time_completion")


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One case, which is a request for each step of its history.

    Raises:
        RecordError: Saying which field is missing or wrong; one wrong step spoils the case.
    """
    rewrites = _steps(record, "requested_rewrite")
    if not rewrites:
        raise RecordError("field 'requested_rewrite' is missing or empty; it should list the edits of the case")
    past = _steps(record, "history_evaluation")
    if past and len(past) != len(rewrites):
        # Without one entry for each step it cannot be said which answer a question about the past has.
        drops.add("history_evaluation (not one for each rewrite)", len(past))
        past = []
    name = case_id(record, index)
    old_names, new_names = (_aliases(record, field, len(rewrites), drops) for field in ("answer", "new_answer"))
    return [
        _request(rewrite, past[at] if past else {}, (old_names[at], new_names[at]), at, f"{name}-{at + 1}", drops)
        for at, rewrite in enumerate(rewrites)
    ]


def _steps(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [record_at(record, name)] if isinstance(record.get(name), Mapping) else objects(record, name)


def _aliases(record: Mapping[str, Any], answers: str, steps: int, drops: Drops) -> list[list[str]]:
    """The aliases of each step's answer."""
    field = f"{answers}_alias"
    value = record.get(field)
    if steps == 1:
        return [texts_in(value)]
    if not isinstance(value, list) or len(value) != steps or not all(isinstance(names, list) for names in value):
        # Without one list for each step it cannot be said which answer an alias is of.
        drops.add(f"{field} (not one list for each rewrite)", len(texts_in(value)))
        return [[]] * steps
    return [texts_in(names) for names in value]


def _request(
    rewrite: Mapping[str, Any],
    past: Mapping[str, Any],
    aliases: tuple[list[str], list[str]],
    at: int,
    name: str,
    drops: Drops,
) -> EditRequest:
    where = f"requested_rewrite[{at}]."
    subject = require_text(rewrite, "subject", where)
    prompt = fill(require_text(rewrite, "prompt", where), subject)
    new = target(rewrite, "target_new", where, required=True)
    old = target(rewrite, "target_true", where, required=False)
    old_names, new_names = aliases
    now = record_at(rewrite, "evaluation", where) if rewrite.get("evaluation") is not None else {}
    paraphrases = _texts(now, WITHOUT_YEARS, f"{where}evaluation.")
    # The completion is the edit prompt written out, which is no test of anything else.
    return make_request(
        drops,
        prompt=prompt,
        target_new=new,
        target_old=old,
        subject=place_subject(subject, prompt, drops),
        paraphrases=[text for text in paraphrases if text != prompt],
        portability=_probes(now, WITH_YEARS, new, new_names, f"{where}evaluation.")
        + _probes(past, WITHOUT_YEARS, old, old_names, f"history_evaluation[{at}]."),
        neighborhood=_probes(past, WITH_YEARS, old, old_names, f"history_evaluation[{at}]."),
        case_id=name,
    )


def _texts(evaluation: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[str]:
    return [text for name in names for text in texts(evaluation, name, where)]


def _probes(
    evaluation: Mapping[str, Any], names: tuple[str, ...], answer: str | None, aliases: list[str], where: str
) -> tuple[Probe, ...]:
    return tuple(probe(text, answer, aliases if answer else ()) for text in _texts(evaluation, names, where))


def _mapping() -> dict[str, str]:
    fields = {
        "case_id": "case_id, with the number of the step",
        "answer_alias": "aliases of the probes with target_old",
        "new_answer_alias": "aliases of the probes with target_new",
    }
    # AToKe-SE may hold its one rewrite without a list around it.
    for list_mark in ("[]", ""):
        rewrite, past = f"requested_rewrite{list_mark}.", f"history_evaluation{list_mark}."
        fields |= {
            f"{rewrite}prompt": "prompt, with {} filled in",
            f"{rewrite}subject": "subject",
            f"{rewrite}target_new.str": "target_new",
            f"{rewrite}target_true.str": "target_old",
        }
        fields |= {f"{rewrite}evaluation.{name}": "paraphrases, where not the prompt" for name in WITHOUT_YEARS}
        fields |= {f"{rewrite}evaluation.{name}": "portability, with target_new" for name in WITH_YEARS}
        fields |= {f"{past}{name}": "portability, with target_old" for name in WITHOUT_YEARS}
        fields |= {f"{past}{name}": "neighborhood, with target_old" for name in WITH_YEARS}
    return fields


ATOKE_ME = Format(
    name="atoke-me",
    description="AToKe-ME (and -SE): the same fact updated several times, in the order of time",
    homepage="https://github.com/Arvid-pku/ATOKE",
    licence="not stated",
    obtain="the repository's folder datasets: AToKe-ME.json, AToKe-SE.json",
    mapping=_mapping(),
    dropped={
        "requested_rewrite[].time_prompt": "the edit prompt with years in it; the same question is a portability probe",
        "requested_rewrite[].time_new": "years; they are written out in the evaluation",
        "requested_rewrite[].time_true": "years; they are written out in the evaluation",
        "requested_rewrite[].relation": "a YAGO name",
        "requested_rewrite[].relation_id": "a YAGO name",
        "requested_rewrite[].target_new.id": "a YAGO name",
        "requested_rewrite[].target_true.id": "a YAGO name",
        "answer": "target_true of each step again",
        "new_answer": "target_new of each step again",
    },
    signatures=(
        ("requested_rewrite[].prompt", "requested_rewrite[].time_new"),
        ("requested_rewrite.prompt", "requested_rewrite.time_new"),
    ),
    convert=convert,
)
