"""ZsRE: zero-shot relation extraction questions, in the two forms in which they are published for editing.

Source: Levy et al., Zero-Shot Relation Extraction via Reading Comprehension (CoNLL 2017), as prepared for editing by
De Cao et al. (2021) and Mitchell et al., Fast Model Editing at Scale (ICLR 2022; repository ``eric-mitchell/mend``,
``data_classes/zsre.py``). ``zsre_mend_eval.json`` is read by ``dsets/zsre.py`` of ``kmeng01/memit`` and by
``easyeditor/dataset/zsre.py`` of ``zjunlp/EasyEdit``.

``zsre_mend_eval.json`` and ``zsre_mend_train.json`` are JSON lists, loaded whole, of ``subject``, ``src`` (a
question), ``rephrase``, ``answers`` (the true answers), ``alt`` (an alternative answer), ``pred`` (what a BART model
answered), ``loc`` (``"nq question: ..."``, an unrelated question from Natural Questions), ``loc_ans`` and ``cond``
(pred, alt and src in one string).

The literature does not agree on the target, so there are two formats. MEND, EasyEdit and CoRSA edit towards ``alt``
(``zsre``); MEMIT, AlphaEdit and AlphaEdit+ towards the true answer, ``answers[0]`` (``zsre-answers``), as a correction
of a model that does not know it, so that there is no outdated answer in the record. Now and then ``alt`` is the true
answer too (then there is no outdated one), or empty (a malformed record of ``zsre``).

EasyEdit's ``zsre_mend_eval_portability_gpt4.json`` adds ``portability``: ``Recalled Relation``, ``New Question`` and
``New Answer`` (``examples/run_zsre_llama2.py``).

The older JSON Lines form of De Cao et al. has ``input``, ``output`` (``[{"answer"}]``), ``alternatives``,
``rephrases`` or ``filtered_rephrases``, and ``prediction`` (``zsre-kilt``); CoRSA's code takes it from the Hub,
``wangzn2001/zsre``, with the first alternative as the new answer and the first output as the old one. That data set's
fields are described here as that code uses them, and ``data_classes/zsre.py`` of MEND.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, HubSource, RecordError
from corsa_plugins.data.formats.building import (
    ONE_HOP,
    ONE_HOP_DROPPED,
    case_id,
    make_request,
    one_hop,
    outdated,
    place_subject,
    probe,
)
from corsa_plugins.data.formats.fields import first_text, objects, optional_text, require_text, texts
from corsa_plugins.data.requests import EditRequest, Probe

__all__ = ["ZSRE", "ZSRE_ANSWERS", "ZSRE_KILT", "convert_alt", "convert_answers", "convert_kilt"]

MAPPING = {
    "src": "prompt",
    "subject": "subject",
    "rephrase": "paraphrases",
    "loc": "neighborhood, with a question mark at the end",
    "loc_ans": "the answer of the neighborhood probe",
    **ONE_HOP,
    "case_id": "case_id; the place in the file without one",
}
DROPPED = {
    "pred": "what another model answered; see `corsa train --fill_target_old` for what yours does",
    "cond": "other fields joined into one string",
    **ONE_HOP_DROPPED,
}
SIGNATURE = ("src", "rephrase", "answers[]", "loc")


def convert_alt(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One question of ZsRE, edited from its true answer to ``alt``.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    old, others = first_text(record.get("answers"))
    drops.add("answers (beyond the first)", others)
    new = require_text(record, "alt")
    return [_request(record, index, drops, target_new=new, target_old=outdated(old, new, drops, "answers"))]


def convert_answers(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One question of ZsRE, edited to its true answer.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    new, others = first_text(record.get("answers"))
    if new is None:
        raise RecordError("field 'answers' has no text in it; the first answer is the target")
    drops.add("answers (beyond the first)", others)
    return [_request(record, index, drops, target_new=new)]


def _request(record: Mapping[str, Any], index: int, drops: Drops, **targets: str | None) -> EditRequest:
    prompt = require_text(record, "src")
    return make_request(
        drops,
        prompt=prompt,
        subject=place_subject(optional_text(record, "subject"), prompt, drops),
        paraphrases=texts(record, "rephrase"),
        neighborhood=_unrelated(record),
        portability=one_hop(record),
        case_id=case_id(record, index),
        **targets,
    )


def _unrelated(record: Mapping[str, Any]) -> tuple[Probe, ...]:
    question = optional_text(record, "loc")
    if question is None:
        return ()
    # The questions come without a question mark; MEMIT and its successors ask them with one.
    return (probe(question if question.endswith("?") else f"{question}?", optional_text(record, "loc_ans")),)


def convert_kilt(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One question of ZsRE in the form of De Cao et al., edited from its first answer to the first alternative.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    new, more = first_text(record.get("alternatives"))
    if new is None:
        raise RecordError("field 'alternatives' has no text in it; the first alternative is the target")
    drops.add("alternatives (beyond the first)", more)
    answers = [text for output in objects(record, "output") for text in texts(output, "answer", "output[].")]
    drops.add("output[].answer (beyond the first)", len(answers) - 1)
    request = make_request(
        drops,
        prompt=require_text(record, "input"),
        target_new=new,
        target_old=outdated(answers[0] if answers else None, new, drops, "output[].answer"),
        paraphrases=[*texts(record, "rephrases"), *texts(record, "filtered_rephrases")],
        case_id=case_id(record, index, "id"),
    )
    return [request]


ZSRE = Format(
    name="zsre",
    description="ZsRE as MEND, EasyEdit and CoRSA use it: questions edited to an alternative answer",
    homepage="https://github.com/eric-mitchell/mend",
    licence="not stated for the data (repository: MIT)",
    obtain="https://memit.baulab.info/data/dsets/zsre_mend_eval.json (and zsre_mend_train.json)",
    mapping={**MAPPING, "alt": "target_new", "answers": "target_old (the first)"},
    dropped=DROPPED,
    signatures=((*SIGNATURE, "alt"),),
    convert=convert_alt,
)

ZSRE_ANSWERS = Format(
    name="zsre-answers",
    description="ZsRE as MEMIT, AlphaEdit and AlphaEdit+ use it: questions edited to their true answer",
    homepage="https://memit.baulab.info",
    licence="not stated for the data (repository: MIT)",
    obtain=ZSRE.obtain,
    mapping={**MAPPING, "answers": "target_new (the first)"},
    dropped={**DROPPED, "alt": "the target of other papers: format zsre"},
    signatures=(SIGNATURE,),
    convert=convert_answers,
)

ZSRE_KILT = Format(
    name="zsre-kilt",
    description="ZsRE in the JSON Lines form of De Cao et al.: questions edited to the first alternative answer",
    homepage="https://github.com/nicola-decao/KnowledgeEditor",
    licence="not stated",
    obtain="the Hub, or the files of MEND and KnowledgeEditor",
    mapping={
        "input": "prompt",
        "alternatives": "target_new (the first)",
        "output[].answer": "target_old (the first)",
        "rephrases": "paraphrases",
        "filtered_rephrases": "paraphrases",
        "id": "case_id; the place in the file without one",
    },
    dropped={
        "prediction": "what another model answered",
        "output": "where the answer was found",
    },
    signatures=(("input", "alternatives", "output[]"),),
    convert=convert_kilt,
    hub=HubSource("wangzn2001/zsre", ("test",)),
)
