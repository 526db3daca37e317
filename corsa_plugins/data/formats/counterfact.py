"""CounterFact and multi-CounterFact.

Source: Meng et al., Locating and Editing Factual Associations in GPT (NeurIPS 2022) and Mass-Editing Memory in a
Transformer (ICLR 2023); repositories ``kmeng01/rome`` and ``kmeng01/memit`` (``dsets/counterfact.py``), data at
``https://memit.baulab.info/data/dsets/``. A copy lies on the Hub as ``azhx/counterfact``, whose card lists the fields.

A record has ``case_id``, ``pararel_idx``, ``requested_rewrite`` (``prompt`` with ``{}``, ``relation_id``, ``subject``,
``target_new`` and ``target_true``, each ``{"str", "id"}``) and the lists ``paraphrase_prompts``,
``neighborhood_prompts``, ``attribute_prompts`` and ``generation_prompts``. Multi-CounterFact is the part of it whose
edits do not contradict each other, with the same fields. Both are JSON lists, which are loaded whole. EasyEdit's
``counterfact_portability_gpt4.json`` adds ``portability`` to a part of it: ``Recalled Relation``, ``New Question`` and
``New Answer``.

EasyEdit's ``counterfact-{train,val,edit}.json`` (``easyeditor/dataset/counterfact.py``) have the same facts with one
paraphrase and one neighbour each: ``case_id``, ``prompt`` (written out), ``target_new``, ``subject``, ``ground_truth``,
``rephrase_prompt``, ``locality_prompt`` and ``locality_ground_truth``. Other files that come with it, of hallucinations
for instance, have the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, HubSource
from corsa_plugins.data.formats.building import (
    ONE_HOP,
    ONE_HOP_DROPPED,
    case_id,
    fill,
    make_request,
    one_hop,
    place_subject,
    probe,
)
from corsa_plugins.data.formats.fields import optional_text, record_at, require_text, texts
from corsa_plugins.data.requests import EditRequest

__all__ = ["COUNTERFACT", "EASYEDIT", "MULTI_COUNTERFACT", "convert", "convert_easyedit"]

HUB = HubSource("azhx/counterfact", ("train", "test"))

MAPPING = {
    "case_id": "case_id",
    "requested_rewrite.prompt": "prompt, with {} filled in",
    "requested_rewrite.subject": "subject",
    "requested_rewrite.target_new.str": "target_new",
    "requested_rewrite.target_true.str": "target_old, and the answer of the neighborhood probes",
    "paraphrase_prompts": "paraphrases",
    "neighborhood_prompts": "neighborhood",
    **ONE_HOP,
}

DROPPED = {
    "pararel_idx": "the place in another data set",
    "requested_rewrite.relation_id": "a Wikidata name; requests have no relation",
    "requested_rewrite.target_new.id": "a Wikidata name",
    "requested_rewrite.target_true.id": "a Wikidata name",
    "attribute_prompts": "prompts whose true answer is target_new; no metric here asks them",
    "generation_prompts": "free continuations about the subject, which have no right answer",
    **ONE_HOP_DROPPED,
}


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One record of CounterFact, which is one request.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    rewrite = record_at(record, "requested_rewrite")
    where = "requested_rewrite."
    subject = require_text(rewrite, "subject", where)
    prompt = fill(require_text(rewrite, "prompt", where), subject)
    new = require_text(record_at(rewrite, "target_new", where), "str", f"{where}target_new.")
    true = rewrite.get("target_true")
    old = (
        optional_text(record_at(rewrite, "target_true", where), "str", f"{where}target_true.")
        if true is not None
        else None
    )
    request = make_request(
        drops,
        prompt=prompt,
        target_new=new,
        target_old=old,
        subject=place_subject(subject, prompt, drops),
        paraphrases=texts(record, "paraphrase_prompts"),
        neighborhood=tuple(probe(text, old) for text in texts(record, "neighborhood_prompts")),
        portability=one_hop(record),
        case_id=case_id(record, index),
    )
    return [request]


def convert_easyedit(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One record in EasyEdit's form, which is one request.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    prompt = require_text(record, "prompt")
    nearby = optional_text(record, "locality_prompt")
    request = make_request(
        drops,
        prompt=prompt,
        target_new=require_text(record, "target_new"),
        target_old=optional_text(record, "ground_truth"),
        subject=place_subject(optional_text(record, "subject"), prompt, drops),
        paraphrases=texts(record, "rephrase_prompt"),
        neighborhood=(probe(nearby, optional_text(record, "locality_ground_truth")),) if nearby else (),
        case_id=case_id(record, index),
    )
    return [request]


COUNTERFACT = Format(
    name="counterfact",
    description="CounterFact: 21,919 counterfactual statements of one fact, with paraphrases and neighbours",
    homepage="https://rome.baulab.info",
    licence="MIT (repository kmeng01/rome)",
    obtain="https://rome.baulab.info/data/dsets/counterfact.json",
    mapping=MAPPING,
    dropped=DROPPED,
    signatures=(("requested_rewrite.prompt", "requested_rewrite.target_new.str", "paraphrase_prompts"),),
    convert=convert,
    hub=HUB,
)

MULTI_COUNTERFACT = Format(
    name="multi-counterfact",
    description="multi-CounterFact: the 20,877 records of CounterFact that do not contradict each other",
    homepage="https://memit.baulab.info",
    licence="MIT (repository kmeng01/memit)",
    obtain="https://memit.baulab.info/data/dsets/multi_counterfact.json",
    mapping=MAPPING,
    dropped=DROPPED,
    signatures=COUNTERFACT.signatures,
    convert=convert,
)

EASYEDIT = Format(
    name="easyedit",
    description="EasyEdit's own form: CounterFact and others with one paraphrase and one neighbour each",
    homepage="https://github.com/zjunlp/EasyEdit",
    licence=COUNTERFACT.licence,
    obtain="the data that EasyEdit's README links to: counterfact-train.json, -val.json, -edit.json",
    mapping={
        "prompt": "prompt",
        "target_new": "target_new",
        "ground_truth": "target_old",
        "subject": "subject",
        "rephrase_prompt": "paraphrases",
        "locality_prompt": "neighborhood",
        "locality_ground_truth": "the answer of the neighborhood probe",
        "case_id": "case_id; the place in the file without one",
    },
    signatures=(("prompt", "target_new", "locality_prompt"),),
    convert=convert_easyedit,
)
