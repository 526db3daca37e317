"""The list of requests in a report: every prompt with the answers of each evaluation, as static HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape

from corsa_plugins.bench.evaluation import Answer, Evaluation, ProbeAnswer, Record

__all__ = ["listing", "text"]

LONGEST = 400
"""Characters of an output that are shown; the whole of it is in the records."""

_KINDS = {
    "missed": "the new answer is missing on the edit prompt",
    "paraphrase": "the new answer is missing on a paraphrase",
    "old": "the old answer comes",
    "probe": "a probe is answered wrong",
    "changed": "an answer differs from the first column's",
    "untouched": "untouched facts",
}
"""What the list can be narrowed to."""


_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML or UTF-8 cannot hold: control characters, halves of surrogate pairs, non-characters."""


def text(value: object, longest: int | None = None) -> str:
    """``value`` as text of the page: escaped, and cut if it is long; what no page may hold is shown as a box."""
    raw = str(value)
    if longest is not None and len(raw) > longest:
        raw = f"{raw[:longest]} … ({len(raw) - longest} more characters)"
    return escape(_UNFIT.sub("\ufffd", raw))


def listing(groups: Sequence[Sequence[Evaluation]]) -> str:
    """The section's HTML: a search form, which a script brings to life, and a list that needs none.

    Args:
        groups: Each of evaluations of the same prompts, at least one; the first group's last is the one whose verdicts
            the list is narrowed by until another is chosen. One that is in a group under two labels (the same tuples of
            records) is shown once, under the first, and its verdicts count for both.
    """
    groups = [_told_apart(group) for group in groups]
    labels = list(dict.fromkeys(evaluation.label for group in groups for evaluation in group))
    judged = labels.index(groups[0][-1].label)
    items: list[tuple[list[str], str]] = []
    for group in groups:
        items += [*_requests(group, labels), *_untouched(group, labels)]
    options = "".join(
        f'<option value="{kind}" data-title="{escape(title)}">{escape(title)} ({count})</option>'
        for kind, title in _KINDS.items()
        if (count := sum(_holds(kind, judged, kinds) for kinds, _ in items)) or len(labels) > 2
    )
    by = ""
    if len(labels) > 2:
        models = "".join(
            f'<option value="{place}"{" selected" if place == judged else ""}>{text(label)}</option>'
            for place, label in enumerate(labels)
        )
        by = f'<select class="by" aria-label="By whose answers">{models}</select>'
    rows = "\n".join(f'<li data-is="{" ".join(kinds)}">{content}</li>' for kinds, content in items)
    return (
        '<form class="search" autocomplete="off" hidden><input type="search" placeholder="Search prompts and answers" '
        'aria-label="Search prompts and answers"><select class="kind" aria-label="Which requests">'
        f'<option value="">all ({len(items)})</option>{options}</select>{by}<output class="soft"></output></form>\n'
        f'<ul id="items" data-judged="{judged}">\n{rows}\n</ul>\n'
        '<button id="more" type="button" hidden>Show more</button>'
    )


def _holds(kind: str, column: int, kinds: Sequence[str]) -> bool:
    return kind in kinds or f"{column}.{kind}" in kinds


def _told_apart(group: Sequence[Evaluation]) -> list[Evaluation]:
    """The group with another label for each: two models may have folders of one name."""
    found: list[Evaluation] = []
    for one in group:
        label, number = one.label, 1
        while label in {other.label for other in found}:
            number += 1
            label = f"{one.label} ({number})"
        found.append(replace(one, label=label))
    return found


def _columns(group: Sequence[Evaluation]) -> tuple[list[Evaluation], list[list[str]]]:
    """The evaluations that differ, and the labels of each."""
    columns: list[Evaluation] = []
    labels: list[list[str]] = []
    for one in group:
        for other, its in zip(columns, labels, strict=True):
            if one.records is other.records and one.untouched is other.untouched:
                its.append(one.label)
                break
        else:
            columns.append(one)
            labels.append([one.label])
    return columns, labels


def _requests(group: Sequence[Evaluation], labels: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    evaluations, names = _columns(group)
    own = [evaluation.label for evaluation in evaluations]
    for records in zip(*(evaluation.records for evaluation in evaluations), strict=True):
        last: Record = records[-1]
        questions = [("edit prompt", [record.edit for record in records])]
        for name, of in (
            ("paraphrase", [record.paraphrases for record in records]),
            ("neighborhood probe", [record.neighborhood for record in records]),
            ("portability probe", [record.portability for record in records]),
        ):
            questions += [(name, list(answers)) for answers in zip(*of, strict=True)]
        body = "".join(_question(name, answers, own) for name, answers in questions)
        case = "" if last.case_id is None else f'<span class="who">{text(last.case_id)}</span>'
        old = "" if last.target_old is None else f' <span class="who">was {text(last.target_old)}</span>'
        fact = f"<bdi>{text(last.edit.prompt, LONGEST)}</bdi> → <b><bdi>{text(last.target_new)}</bdi></b>"
        summary = f"{case}{fact}{old}{_marks(records)}"
        kinds = [
            f"{labels.index(label)}.{kind}"
            for column, (its, record) in enumerate(zip(names, records, strict=True))
            for label in its
            for kind in _kinds(record, [(answers[0], answers[column]) for _, answers in questions])
        ]
        yield kinds, f"<details><summary>{summary}</summary>{body}</details>"


def _marks(records: Sequence[Record]) -> str:
    """What became of a request: the verdict where there is one model to judge, else how many models know it."""
    after = records[1:] if len(records) > 2 else records[-1:]
    if len(after) == 1:
        (last,) = after
        new = sum(answer.says_new for answer in last.paraphrases)
        said = f' <span class="who">paraphrases {new} of {len(last.paraphrases)}</span>' if last.paraphrases else ""
        return _mark(last.edit) + said
    new = sum(record.edit.says_new for record in after)
    return f' <span class="who">new answer in {new} of {len(after)}</span>'


def _untouched(group: Sequence[Evaluation], labels: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    evaluations, names = _columns(group)
    own = [evaluation.label for evaluation in evaluations]
    for answers in zip(*(evaluation.untouched for evaluation in evaluations), strict=True):
        last: ProbeAnswer = answers[-1]
        right = "" if last.answer is None else f" → <b><bdi>{text(last.answer)}</bdi></b>"
        if last.aliases:
            right += f' <span class="who">or {text(", or ".join(last.aliases), LONGEST)}</span>'
        mark = _mark(last)
        if len(answers) > 2 and last.answer is not None:
            after = answers[1:]
            mark = f' <span class="who">right in {sum(bool(a.says_answer) for a in after)} of {len(after)}</span>'
        summary = f'<span class="who">untouched</span><bdi>{text(last.prompt, LONGEST)}</bdi>{right}{mark}'
        kinds = ["untouched"]
        for label, answer in ((label, a) for its, a in zip(names, answers, strict=True) for label in its):
            kinds += [f"{labels.index(label)}.probe"] if answer.says_answer is False else []
            kinds += [f"{labels.index(label)}.changed"] if answers[0].output != answer.output else []
        yield kinds, f"<details><summary>{summary}</summary>{_question('', list(answers), own)}</details>"


def _kinds(record: Record, answers: Sequence[tuple[Answer | ProbeAnswer, Answer | ProbeAnswer]]) -> list[str]:
    """What holds of a request by one model's answers; each of ``answers`` is the first model's and this one's."""
    asked = [record.edit, *record.paraphrases]
    verdicts = {
        "missed": not record.edit.says_new,
        "paraphrase": any(not answer.says_new for answer in record.paraphrases),
        "old": any(answer.says_old for answer in asked),
        "probe": any(answer.says_answer is False for answer in (*record.neighborhood, *record.portability)),
        "changed": any(first.output != own.output for first, own in answers),
    }
    return [kind for kind, holds in verdicts.items() if holds]


def _question(name: str, answers: Sequence[Answer | ProbeAnswer], labels: Sequence[str]) -> str:
    """A question and its answers as lines of text, their parts set off by tabs: one element, however many there are.

    Thousands of requests make a page that still opens; the script turns the lines of a request that is opened into
    something prettier. Tabs and newlines of the texts themselves are shown as signs, so that no text can pass for a
    line of the report's.
    """
    first = answers[0]
    right = ""
    if isinstance(first, ProbeAnswer) and first.answer is not None:
        right = f"(right: {', or '.join((first.answer, *first.aliases))})"
    lines = [(f"{name}:", first.prompt, right)] if name else []
    lines += [
        (_verdict(answer), f"{label}:", answer.output.strip() or "(nothing)")
        for label, answer in zip(labels, answers, strict=True)
    ]
    return f"<p>{NEWLINE.join(TAB.join(_one_line(part) for part in line) for line in lines)}</p>"


TAB, NEWLINE = "\t", "\n"


def _one_line(value: str) -> str:
    signs = value.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\r", " ⏎ ").replace("\t", " ⇥ ")
    return text(signs, LONGEST)


def _verdict(answer: Answer | ProbeAnswer) -> str:
    """The verdict in words with a sign: nothing rests on colour."""
    if isinstance(answer, ProbeAnswer):
        return "·" if answer.says_answer is None else "✓ right" if answer.says_answer else "✗ wrong"
    said = ["✓ new"] if answer.says_new else []
    said += ["↺ old"] if answer.says_old else []
    return " ".join(said) or ("✗ neither" if answer.says_old is not None else "✗ not new")


def _mark(answer: Answer | ProbeAnswer) -> str:
    words = _verdict(answer)
    kind = {"✓": "good", "↺": "warn", "✗": "bad"}.get(words[0])
    return f'<span class="v {kind}">{words}</span>' if kind else ""
