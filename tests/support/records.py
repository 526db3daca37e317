"""Strategies for requests and probes with anything in them that is allowed."""

from __future__ import annotations

from hypothesis import strategies as st

from corsa_plugins.data.requests import EditRequest, Probe, normalise_whitespace

texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip)
probes = st.builds(Probe, prompt=texts, answer=st.none() | texts) | st.builds(
    Probe, prompt=texts, answer=texts, aliases=st.lists(texts, max_size=4)
)


@st.composite
def edit_requests(draw):
    target_new = draw(texts)
    prompt = draw(texts)
    words = prompt.split()
    fields = {
        "prompt": prompt,
        "target_new": target_new,
        "subject": draw(st.none() | st.sampled_from(words)),
        "target_old": draw(
            st.none() | texts.filter(lambda old: normalise_whitespace(old) != normalise_whitespace(target_new))
        ),
        "paraphrases": tuple("test " + text for text in draw(st.lists(texts, max_size=3))),
        "neighborhood": draw(st.lists(probes, max_size=2)),
        "portability": draw(st.lists(probes, max_size=2)),
        "case_id": draw(st.none() | st.integers() | st.text(st.characters(exclude_categories=("Cs",)), max_size=5)),
    }
    tested = {normalise_whitespace(probe.prompt) for probe in (*fields["neighborhood"], *fields["portability"])}
    validation = ("validation " + text for text in draw(st.lists(texts, max_size=2)))
    fields["validation_prompts"] = tuple(v for v in validation if normalise_whitespace(v) not in tested)
    return EditRequest(**fields)
