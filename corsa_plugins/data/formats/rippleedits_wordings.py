"""How RippleEdits words its relations (``src/relation.py`` of its repository), and its sentences taken apart."""

from __future__ import annotations

from corsa_plugins.data.formats.base import RecordError

__all__ = ["WORDINGS", "answer_behind", "take_apart"]

_NAME_OF = "The name of the {} of * is"
WORDINGS = {
    **{
        relation: _NAME_OF.format(words)
        for relation, words in {
            "MOTHER": "mother",
            "FATHER": "father",
            "BROTHER": "brother",
            "SISTER": "sister",
            "SPOUSE": "spouse",
            "UNCLE": "uncle",
            "AUNT": "aunt",
            "CHILD": "child",
            "COUNTRY_OF_CITIZENSHIP": "country of citizenship",
            "STEPFATHER": "stepfather",
            "STEPMOTHER": "stepmother",
            "ALMA_MATER": "alma mater",
            "EMPLOYER": "employer",
            "FIELD_OF_WORK": "field of work",
            "HEAD_OF_GOVERNMENT": "head of government",
            "HEAD_OF_STATE": "head of state",
            "CAPITAL": "capital city",
            "ANTHEM": "anthem",
            "AUTHOR": "author",
            "EDITOR": "editor",
            "DIRECTOR": "director",
            "SCREENWRITER": "screenwriter",
            "ARCHITECT": "architect",
            "COMPOSER": "composer",
            "FOUNDER": "founder",
        }.items()
    },
    "SIBLING": "The names of the siblings of * are",
    "CAST_MEMBER": "The names of the cast members of * are",
    "NUMBER_OF_CHILDREN": "The number of children * has is",
    "SEX_OR_GENDER": "The gender of * is",
    "PLACE_OF_BIRTH": "The place of birth of * is",
    "PLACE_OF_DEATH": "The place of death of * is",
    "PLACE_OF_BURIAL": "The place of burial of * is",
    "DATE_OF_BIRTH": "The date of birth of * is",
    "DATE_OF_DEATH": "The date of death of * is",
    "SEXUAL_ORIENTATION": "The sexual orientation of * is",
    "OCCUPATION": "The occupation of * is",
    "NATIVE_LANGUAGE": "The mother tongue of * is",
    "OFFICIAL_LANGUAGE": "The official language of * is",
    "EYE_COLOR": "The eye color of * is",
    "COUNTRY": "The name of the country which * is associated with is",
    "ETHNIC_GROUP": "The name of the ethnic group which * is associated with is",
    "RELIGION": "The name of the religion which * is associated with is",
    "POSITION_HELD": "The name of the position held by * is",
    "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which * is a member of is",
    "LEAGUE": "The name of the league which * plays in is",
    "AWARD_RECEIVED": "The name of the award * won is",
    "CONTINENT": "The name of the continent which * is part of is",
    "CURRENCY": "The name of the currency in * is",
    "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in * is",
    "CAPITAL_OF": "The name of the country which * is the capital of is",
    "FOLLOWS": "* follows",
    "FOLLOWED_BY": "* is followed by",
    "IS_ALIVE": "Is * still alive?",
}
"""How each relation is worded, with the subject's place marked."""


def take_apart(
    sentence: str, relation: str, original: str | None = None, subject: str | None = None
) -> tuple[str, str, str]:
    """A fact's sentence as prompt, answer and subject.

    Args:
        sentence: The fact, its answer at the end, with a full stop.
        relation: The relation's name in RippleEdits.
        original: The sentence of the outdated fact, which begins in the same way.
        subject: The subject, if something else names it.

    Returns:
        The prompt, the answer, and the subject.

    Raises:
        RecordError: The relation is not known, or it cannot be told where the prompt ends.
    """
    wording = WORDINGS.get(relation)
    if wording is None:
        raise RecordError(f"relation {relation!r} is not known: where the prompt of {sentence!r} ends cannot be told")
    before, _, after = wording.partition("*")
    after += " "
    if subject is not None and sentence.startswith(f"{before}{subject}{after}"):
        prompt = f"{before}{subject}{after}".rstrip()
        return prompt, answer_behind(sentence, prompt), subject
    if not sentence.startswith(before):
        raise RecordError(f"the edit's prompt {sentence!r} is not worded as relation {relation} is: {wording!r}")
    ends = []
    at = sentence.find(after, len(before) + 1)
    while at >= 0:
        ends.append(at)
        at = sentence.find(after, at + 1)
    if original is not None:
        # Both sentences have the same prompt; an answer that happens to contain the wording is told by that. The last
        # one is taken: a shorter prompt would have its "answer" begin with the rest of the subject.
        ends = [end for end in ends if original.startswith(sentence[: end + len(after)])][-1:]
    if len(ends) != 1:
        times = "more than once" if ends else "nowhere"
        raise RecordError(f"where the prompt of {sentence!r} ends cannot be told: {after.strip()!r} is there {times}")
    subject = sentence[len(before) : ends[0]]
    prompt = sentence[: ends[0]] + after.rstrip()
    return prompt, answer_behind(sentence, prompt), subject


def answer_behind(sentence: str, prompt: str) -> str:
    """What follows the prompt in a sentence, without its full stop."""
    return sentence[len(prompt) :].strip().removesuffix(".").strip()
