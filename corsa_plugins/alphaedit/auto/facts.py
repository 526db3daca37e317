"""Facts to try edits on: well-known ones that the model turns out to know, none of them about what is to be edited."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.asking import generate_answers, score_targets
from corsa_plugins.model.likeness import template_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FEWEST", "TrialFacts", "known_facts", "own_facts"]

FEWEST = 8
"""With fewer facts to edit than this nothing is tried: the figures would be noise."""

_EDITED, _OWN_EDITED, _WATCHED = 10, 20, 30
"""At most. Of the user's own more are edited: on a trial of few, a batch of many looks easier than it is."""


class _Relation(NamedTuple):
    forms: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


_RELATIONS = (
    _Relation(
        ("The capital of {} is", "{} is a country whose capital is", "The government of {} has its seat in"),
        (
            ("France", "Paris"), ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Spain", "Madrid"), ("Russia", "Moscow"),
            ("Greece", "Athens"), ("Cuba", "Havana"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Poland", "Warsaw"),
            ("Norway", "Oslo"), ("Ireland", "Dublin"), ("Austria", "Vienna"), ("Iran", "Tehran"), ("Iraq", "Baghdad"),
        ),
    ),
    _Relation(
        ("In {}, people speak", "{} is a country where most people speak", "The official language of {} is"),
        (
            ("Italy", "Italian"), ("Germany", "German"), ("Portugal", "Portuguese"), ("Sweden", "Swedish"),
            ("Mexico", "Spanish"), ("Brazil", "Portuguese"), ("Turkey", "Turkish"), ("Denmark", "Danish"),
            ("Thailand", "Thai"), ("Hungary", "Hungarian"), ("Finland", "Finnish"), ("Argentina", "Spanish"),
            ("Ukraine", "Ukrainian"), ("Vietnam", "Vietnamese"), ("Mongolia", "Mongolian"),
        ),
    ),
    _Relation(
        ("The city of {} is in the country of", "{} is a city in", "You will find {} on a map of"),
        (
            ("Barcelona", "Spain"), ("Milan", "Italy"), ("Munich", "Germany"), ("Lyon", "France"), ("Osaka", "Japan"),
            ("Mumbai", "India"), ("Shanghai", "China"), ("Manchester", "England"), ("Sydney", "Australia"),
            ("Toronto", "Canada"), ("Seville", "Spain"), ("Naples", "Italy"), ("Hamburg", "Germany"),
            ("Kyoto", "Japan"), ("Beijing", "China"), ("Vancouver", "Canada"), ("Melbourne", "Australia"),
        ),
    ),
    _Relation(
        ("The {} belongs to the class of", "{} are a kind of", "In biology, the {} is one of the"),
        (
            ("dog", "mammals"), ("eagle", "birds"), ("snake", "reptiles"), ("frog", "amphibians"), ("horse", "mammals"),
            ("sparrow", "birds"), ("lizard", "reptiles"), ("toad", "amphibians"), ("whale", "mammals"),
            ("parrot", "birds"), ("turtle", "reptiles"), ("salamander", "amphibians"),
        ),
    ),
    _Relation(
        ("The company that makes the {} is", "{} is a product of", "The maker of the {} is"),
        (
            ("iPhone", "Apple"), ("Windows operating system", "Microsoft"), ("PlayStation", "Sony"),
            ("Xbox", "Microsoft"), ("MacBook", "Apple"), ("Android operating system", "Google"), ("iPad", "Apple"),
            ("Mustang", "Ford"), ("Corolla", "Toyota"), ("Civic", "Honda"), ("Kindle", "Amazon"), ("Prius", "Toyota"),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class TrialFacts:
    """What is tried.

    Attributes:
        edits: Facts that are changed on trial; ``paraphrases`` ask for the same in other words.
        watched: (prompt, answer) that the model gives, of other subjects.
        source: Where they come from, in words.
    """

    edits: tuple[EditRequest, ...]
    watched: tuple[tuple[str, str], ...]
    source: str


def known_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    avoid: Collection[str] = (),
    *,
    chat_template: bool = False,
    seed: int = 0,
) -> TrialFacts | None:
    """Well-known facts that the model answers at once, half of them to edit.

    Args:
        model: It is asked, and left as it is.
        tokenizer: Its tokenizer.
        avoid: Subjects that are to be edited, which are left out.
        chat_template: Whether prompts go through the chat template.
        seed: Of who is edited to what.

    Returns:
        ``None`` where the model knows too few.
    """
    shunned = {subject.casefold() for subject in avoid}
    facts = [
        (relation, subject, answer)
        for relation in _RELATIONS
        for subject, answer in relation.facts
        if subject.casefold() not in shunned
    ]
    pairs = [(relation.forms[0].format(subject), answer) for relation, subject, answer in facts]
    scores = score_targets(model, tokenizer, pairs, chat_template=chat_template)
    known = [fact for fact, score in zip(facts, scores, strict=True) if score.top1]
    draw = random.Random(seed)
    draw.shuffle(known)
    edits: list[EditRequest] = []
    watched: list[tuple[str, str]] = []
    for relation, subject, answer in _in_turn(known):
        others = sorted({other for kind, _, other in known if kind is relation and other != answer})
        prompts = [form.format(subject) for form in relation.forms]
        if others and len(edits) < min(_EDITED, len(known) // 2):
            edits.append(
                EditRequest(
                    prompt=prompts[0],
                    target_new=draw.choice(others),
                    target_old=answer,
                    subject=subject,
                    paraphrases=tuple(prompts[1:]),
                )
            )
        elif len(watched) < _WATCHED:
            watched.append((prompts[0], answer))
    if len(edits) < FEWEST or len(watched) < FEWEST:
        return None
    return TrialFacts(tuple(edits), tuple(watched), f"{len(edits)} well-known facts that the model knows")


def own_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    *,
    chat_template: bool = False,
    seed: int = 0,
) -> TrialFacts | None:
    """Half of the requests with one another's new answers, the other half to be left alone.

    For a model that knows little of the world at large. Other wordings, neighbours and the like are not looked at:
    the same prompt behind contexts stands for them.

    Args:
        model: It is asked, and left as it is.
        tokenizer: Its tokenizer.
        requests: What is to be edited.
        contexts: Templates, the bare one first.
        chat_template: Whether prompts go through the chat template.
        seed: Of the halves.

    Returns:
        ``None`` where there are too few.
    """
    draw = random.Random(seed)
    usable = [request for request in requests if request.subject]
    draw.shuffle(usable)
    half = min(_OWN_EDITED, len(usable) // 2)
    edited, others = usable[:half], usable[half : half + _WATCHED]
    if half < FEWEST:
        return None
    subjects = {request.subject for request in edited}
    others = [request for request in others if request.subject not in subjects]
    edits = tuple(
        EditRequest(
            prompt=request.prompt,
            target_new=draw.choice(_targets_like(request, usable)),
            subject=request.subject,
            paraphrases=tuple(context.replace("{}", request.prompt) for context in contexts[1:3]),
        )
        for request in edited
    )
    prompts = [request.prompt for request in others]
    said = generate_answers(model, tokenizer, prompts, max_new_tokens=2, chat_template=chat_template)
    watched = tuple((prompt, each.text) for prompt, each in zip(prompts, said, strict=True) if each.text.strip())
    if len(watched) < FEWEST:
        return None
    return TrialFacts(edits, watched, f"{half} of the requests, with answers of other requests")


def _targets_like(request: EditRequest, requests: Sequence[EditRequest]) -> list[str]:
    """New answers of other requests, where there are any of requests in the same words."""
    form = template_of(request.prompt, request.subject or "")
    others = [other for other in requests if other is not request]
    alike = [other for other in others if template_of(other.prompt, other.subject or "") == form]
    return sorted({other.target_new for other in alike or others})


def _in_turn(facts: Sequence[tuple[_Relation, str, str]]) -> Iterator[tuple[_Relation, str, str]]:
    """One of each relation after the other, those to be edited and those to be watched alike."""
    queues = [[fact for fact in facts if fact[0] is relation] for relation in _RELATIONS]
    for index in range(max(map(len, queues), default=0)):
        for queue in queues:
            if index < len(queue):
                yield queue[index]
