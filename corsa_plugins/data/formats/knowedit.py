"""KnowEdit: WikiData recent, WikiData counterfact, WikiBio and ZsRE, re-organised by the authors of EasyEdit.

Source: Zhang et al., A Comprehensive Study of Knowledge Editing for Large Language Models (2024); data set
``zjunlp/KnowEdit`` on the Hub (folder ``benchmark``), repository ``zjunlp/EasyEdit`` (``examples/KnowEdit.md`` shows a
record of each task, ``easyeditor/dataset/knowedit.py`` and ``examples/run_knowedit_llama2.py`` read them).

The WikiData tasks and ZsRE have ``subject``, ``prompt``, ``target_new``, ``ground_truth`` (missing in WikiData recent),
``rephrase_prompt`` or ``rephrase`` (ZsRE), ``cond`` (ZsRE), ``portability`` (``Logical_Generalization``,
``Reasoning``, ``Subject_Aliasing``) and ``locality`` (``Relation_Specificity``, ``Forgetfulness``). WikiBio has
``text``, ``labels`` and ``concept`` for prompt, target and subject. A category is a list of
``{"prompt", "ground_truth"}``, where ``ground_truth`` is a text, a list of texts, or a list of lists of names: its
first text is the probe's answer, as in EasyEdit, and any other counts as right too. Files are JSON lists, loaded whole.

Two things in the published files need care. In 43 of the 1,301 records of the ZsRE task ``ground_truth`` is
``target_new``: an edit to what is true, without an outdated answer. And of the 298 questions of the form "..., which is
not X, is" (``Forgetfulness``) in the training file of WikiData recent, 198 have X itself as their first or only answer:
another one is taken, or the question is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corsa_plugins.data.formats.base import Drops, Format, HubSource, RecordError
from corsa_plugins.data.formats.building import case_id, make_request, outdated, place_subject, probe_of_answers
from corsa_plugins.data.formats.fields import (
    first_text,
    objects,
    optional_text,
    record_at,
    require_text,
    texts,
    texts_in,
)
from corsa_plugins.data.requests import EditRequest, Probe

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
CATEGORIES = ("Logical_Generalization", "Reasoning", "Subject_Aliasing")
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
        target_old=outdated(old, new, drops, "ground_truth"),
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
    probes = []
    for category in categories:
        for item in objects(categories, category, f"{name}."):
            prompt, _ = first_text(item.get("prompt"))
            answers = _answers(item.get("ground_truth"))
            if prompt is None or not answers:
                # EasyEdit leaves these out too: there is nothing to compare an output with.
                drops.add(f"{name} (no prompt or no answer)")
                continue
            made = probe_of_answers(prompt, answers, drops, name)
            probes += [made] if made else []
    return tuple(probes)


def _answers(value: Any) -> list[list[str]]:
    """The answers with their aliases: of a text, a list of texts, or a list of lists."""
    groups = [texts_in(item) for item in (value if isinstance(value, list) else [value])]
    return [names for names in groups if names]


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
        "portability": "portability: all categories; the first answer, and the others as aliases",
        "locality": "neighborhood: all categories; the first answer, and the others as aliases",
        "case_id": "case_id; the place in the file without one",
    },
    dropped={"cond": "other fields joined into one string"},
    signatures=(
        ("prompt", "target_new", "locality"),
        # Edit requests have a list there.
        *(("prompt", "target_new", f"portability.{category}") for category in CATEGORIES),
        ("text", "labels"),
    ),
    convert=convert,
    hub=HUB,
)
