"""KnowEdit: WikiData recent, WikiData counterfact, WikiBio and ZsRE, re-organised by the authors of EasyEdit.

Source: Zhang et al., A Comprehensive Study of Knowledge Editing for Large Language Models (2024); data set
``zjunlp/KnowEdit`` on the Hub (folder ``benchmark``), repository ``zjunlp/EasyEdit`` (``examples/KnowEdit.md`` shows a
record of each task, ``easyeditor/dataset/knowedit.py`` and ``examples/run_knowedit_llama2.py`` read them).

The WikiData tasks and ZsRE have ``subject``, ``prompt``, ``target_new``, ``ground_truth`` (missing in WikiData recent),
``rephrase_prompt`` or ``rephrase`` (ZsRE), ``cond`` (ZsRE), ``portability`` (``Logical_Generalization``,
``Reasoning``, ``Subject_Aliasing``) and ``locality`` (``Relation_Specificity``, ``Forgetfulness``). WikiBio has
``text``, ``labels`` and ``concept`` for prompt, target and subject. A category is a list of
``{"prompt", "ground_truth"}``, where ``ground_truth`` is a text, a list of texts, or a list of lists of aliases: its
first text is taken, as EasyEdit does. Files are JSON lists, loaded whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.formats.base import Drops, Format, HubSource, RecordError
from corsa_plugins.formats.fields import (
    case_id,
    first_text,
    make_request,
    objects,
    optional_text,
    place_subject,
    probe,
    record_at,
    require_text,
    texts,
)
from corsa_plugins.requests import EditRequest, Probe

__all__ = ["KNOWEDIT", "convert"]

FILES = {
    "wiki_recent": "benchmark/wiki_recent/recent_test.json",
    "wiki_recent-train": "benchmark/wiki_recent/recent_train.json",
    "wiki_counterfact": "benchmark/wiki_counterfact/test_cf.json",
    "wiki_counterfact-train": "benchmark/wiki_counterfact/train_cf.json",
    "wikibio": "benchmark/WikiBio/wikibio-test-all.json",
    "wikibio-train": "benchmark/WikiBio/wikibio-train-all.json",
    "zsre": "benchmark/ZsRE/ZsRE-test-all.json",
}
HUB = HubSource("zjunlp/KnowEdit", tuple(FILES), FILES)


def convert(record: Mapping[str, Any], index: int, drops: Drops) -> list[EditRequest]:
    """One record of any of the four tasks, which is one request.

    Raises:
        RecordError: Saying which field is missing or wrong.
    """
    # WikiBio has names of its own, and never the other ones.
    biography = "text" in record and "prompt" not in record
    prompt = require_text(record, "text" if biography else "prompt")
    subject = optional_text(record, "concept" if biography else "subject")
    name = "labels" if biography else "target_new"
    new, more = first_text(record.get(name))
    if new is None:
        raise RecordError(f"field '{name}' has no text in it; it is the target")
    drops.add(f"{name} (beyond the first)", more)
    old, aliases = first_text(record.get("ground_truth"))
    drops.add("ground_truth (beyond the first)", aliases)
    request = make_request(
        drops,
        prompt=prompt,
        target_new=new,
        target_old=old,
        subject=place_subject(subject, prompt, drops),
        paraphrases=[*texts(record, "rephrase_prompt"), *texts(record, "rephrase")],
        neighborhood=_probes(record, "locality", drops),
        portability=_probes(record, "portability", drops),
        case_id=case_id(record, index),
    )
    return [request]


def _probes(record: Mapping[str, Any], name: str, drops: Drops) -> tuple[Probe, ...]:
    if record.get(name) is None:
        return ()
    categories = record_at(record, name)
    found = []
    for category in categories:
        for item in objects(categories, category, f"{name}."):
            prompt, _ = first_text(item.get("prompt"))
            answer, aliases = first_text(item.get("ground_truth"))
            if prompt is None or answer is None:
                # EasyEdit leaves these out too: there is nothing to compare an output with.
                drops.add(f"{name} (no prompt or no answer)")
                continue
            drops.add(f"{name} (further answers and aliases)", aliases)
            found.append(probe(prompt, answer))
    return tuple(found)


KNOWEDIT = Format(
    name="knowedit",
    description="KnowEdit: WikiData recent and counterfact, WikiBio, ZsRE, with portability and locality probes",
    homepage="https://huggingface.co/datasets/zjunlp/KnowEdit",
    licence="MIT (data set card)",
    obtain="the Hub; a split is one task",
    mapping={
        "prompt": "prompt",
        "text": "prompt (WikiBio)",
        "target_new": "target_new",
        "labels": "target_new (WikiBio)",
        "subject": "subject",
        "concept": "subject (WikiBio)",
        "ground_truth": "target_old (the first)",
        "rephrase_prompt": "paraphrases",
        "rephrase": "paraphrases",
        "portability": "portability: all categories, the first answer of each",
        "locality": "neighborhood: all categories, the first answer of each",
        "case_id": "case_id; the place in the file without one",
    },
    dropped={"cond": "other fields joined into one string"},
    signatures=(("prompt", "target_new", "locality"), ("prompt", "target_new", "portability"), ("text", "labels")),
    convert=convert,
    hub=HUB,
)
