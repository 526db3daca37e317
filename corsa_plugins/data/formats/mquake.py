"""MQuAKE and MQuAKE-Remastered: edits and the multi-hop questions whose answers follow from them.

Source: Zhong et al., MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions (EMNLP 2023),
repository ``princeton-nlp/MQuAKE`` (the README documents a record); Zhong et al., MQuAKE-Remastered (ICLR 2025),
repository and data set ``henryzhongsc/MQuAKE-Remastered``.

A case has ``case_id``, ``requested_rewrite`` (a list: ``prompt`` with ``{}``, ``relation_id``, ``subject``,
``question``, ``target_new`` and ``target_true``, each ``{"str", "id"}``), three multi-hop ``questions``, ``answer``,
``answer_alias``, ``new_answer``, ``new_answer_alias``, ``single_hops``, ``new_single_hops``, ``orig``, and in MQuAKE-T
``answer_extended``. Remastered files on GitHub add ``6334_split``. The data set on the Hub writes the targets flat, as
``target_new_str`` and ``target_true_str``, has ``split`` for the cases edited at each number of edits, and lists the
triples at the top (as ``eval/mquake_remastered/mquake_dataset.py`` of that repository uses them). Files are JSON
lists, loaded whole.

Every rewrite is one request, named ``CASE-K`` with K from 1. The multi-hop questions hold once all edits of the case
are made, so they are probes of its last rewrite, and each is counted once. CoRSA's code takes only the first rewrite
of a case. One fact may be edited in many cases, in MQuAKE-CF also to different answers: a case that loses an edit to
:func:`corsa_plugins.data.formats.first_of_contradictions` has questions whose answer no longer follows. The cases of
MQuAKE-Remastered's CF6334 are made to be edited together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, HubSource, RecordError
from corsa_plugins.data.formats.building import case_id, fill, make_request, place_subject, probe
from corsa_plugins.data.formats.fields import objects, optional_text, record_at, require_text, texts
from corsa_plugins.data.requests import EditRequest

__all__ = ["MQUAKE", "MQUAKE_REMASTERED", "convert", "target"]

MAPPING = {
    "case_id": "case_id, with the number of the rewrite",
    "requested_rewrite[].prompt": "prompt, with {} filled in",
    "requested_rewrite[].subject": "subject",
    "requested_rewrite[].question": "paraphrases",
    "requested_rewrite[].target_new.str": "target_new",
    "requested_rewrite[].target_new_str": "target_new",
    "requested_rewrite[].target_true.str": "target_old",
    "requested_rewrite[].target_true_str": "target_old",
    "questions": "portability of the last rewrite of the case",
    "new_answer": "the answer of the portability probes",
    "new_answer_alias": "aliases of the portability probes",
}
DROPPED = {
    "requested_rewrite[].relation_id": "a Wikidata name; requests have no relation",
    "requested_rewrite[].target_new.id": "a Wikidata name",
    "requested_rewrite[].target_true.id": "a Wikidata name",
    "requested_rewrite[].target_new_id": "a Wikidata name",
    "requested_rewrite[].target_true_id": "a Wikidata name",
    "answer": "the multi-hop answer before the edits",
    "answer_alias": "the multi-hop answer before the edits",
    "answer_extended": "the multi-hop answer before the edits",
    "single_hops": "the chain of facts before the edits",
    "new_single_hops": "the chain of facts after them; the edited ones are the requests",
    "orig": "Wikidata triples",
    **{
        f"{which}triples{form}": "Wikidata triples" for which in ("orig_", "new_", "edit_") for form in ("", "_labeled")
    },
    "split": "which cases are edited at each number of edits",
    "6334_split": "which cases are edited at each number of edits",
}


def target(rewrite: Mapping[str, Any], name: str, where: str, *, required: bool) -> str | None:
    """The text of ``target_new`` or ``target_true``, nested or flat.

    Raises:
        RecordError: It is required and missing, or not text.
    """
    flat = f"{name}_str"
    if flat in rewrite and name not in rewrite:
        return require_text(rewrite, flat, where) if required else optional_text(rewrite, flat, where)
    if not required and rewrite.get(name) is None:
        return None
    holder = record_at(rewrite, name, where)
    where = f"{where}{name}."
    return require_text(holder, "str", where) if required else optional_text(holder, "str", where)


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One case, which is a request for each of its rewrites.

    Raises:
        RecordError: Saying which field is missing or wrong; one wrong rewrite spoils the case.
    """
    rewrites = objects(record, "requested_rewrite")
    if not rewrites:
        raise RecordError("field 'requested_rewrite' is missing or empty; it should list the edits of the case")
    name = case_id(record, index)
    questions = texts(record, "questions")
    answer = optional_text(record, "new_answer")
    if questions and answer is None:
        raise RecordError("field 'new_answer' is missing or blank; it is the answer of the questions after the edits")
    aliases = texts(record, "new_answer_alias")
    follow = tuple(probe(text, answer, aliases) for text in questions)
    if follow:
        drops.add("new_answer_alias (repeated answers)", len(aliases) - len(follow[0].aliases))
    requests = []
    for number, rewrite in enumerate(rewrites, start=1):
        where = f"requested_rewrite[{number - 1}]."
        subject = require_text(rewrite, "subject", where)
        prompt = fill(require_text(rewrite, "prompt", where), subject)
        request = make_request(
            drops,
            prompt=prompt,
            target_new=target(rewrite, "target_new", where, required=True),
            target_old=target(rewrite, "target_true", where, required=False),
            subject=place_subject(subject, prompt, drops),
            paraphrases=texts(rewrite, "question", where),
            portability=follow if number == len(rewrites) else (),
            case_id=f"{name}-{number}",
        )
        requests.append(request)
    return requests


MQUAKE = Format(
    name="mquake",
    description="MQuAKE-CF, -CF-3k and -T: one to four edits a case, and multi-hop questions that follow from them",
    homepage="https://github.com/princeton-nlp/MQuAKE",
    licence="MIT",
    obtain="the repository's folder datasets",
    mapping=MAPPING,
    dropped=DROPPED,
    signatures=(("requested_rewrite[].prompt", "requested_rewrite[].subject", "questions[]", "new_answer"),),
    convert=convert,
)

MQUAKE_REMASTERED = Format(
    name="mquake-remastered",
    description="MQuAKE-Remastered: MQuAKE with its corrupted questions and labels repaired",
    homepage="https://github.com/henryzhongsc/MQuAKE-Remastered",
    licence="CC BY 4.0",
    obtain="the Hub, or the repository's folder datasets",
    mapping=MAPPING,
    dropped=DROPPED,
    signatures=MQUAKE.signatures,
    convert=convert,
    hub=HubSource("henryzhongsc/MQuAKE-Remastered", ("CF3k", "CF9k", "CF6334", "T")),
)
