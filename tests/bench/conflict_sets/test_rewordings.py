"""Earlier edits in other words, as candidates and to validate on."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest

from corsa_plugins.bench.conflict_sets import reworded, rewordings, validation_probes
from corsa_plugins.data.requests import EditRequest, Probe, RequestError
from corsa_plugins.errors import SettingError


def test_earlier_edits_are_reworded_with_answers_of_their_relation() -> None:
    def capital(land: str, new: str, *prompts: str) -> EditRequest:
        return EditRequest(
            prompt=f"The capital of {land} is", subject=land, target_new=new, target_old=f"old {new}",
            validation_prompts=prompts, case_id=land,
        )  # fmt: skip

    edited = [
        capital("France", "Rome", "France has the capital"),
        capital("Italy", "Oslo", "Italy has the capital"),
        capital("Spain", "Bern"),
        EditRequest(prompt="Ada plays", subject="Ada", target_new="chess", validation_prompts=["Ada's game is"]),
    ]
    others = [capital("Norway", "Riga"), EditRequest(prompt="Bob eats", subject="Bob", target_new="fish")]
    found = rewordings(edited, others, seed=1)
    assert {request.case_id for request in found} == {"France-reworded", "Italy-reworded"}  # the only ones that can be
    for request in found:
        earlier = next(one for one in edited if one.subject == request.subject)
        assert request.prompt in earlier.validation_prompts
        assert request.target_old == earlier.target_new
        answers = {a for one in (*edited[:3], others[0]) for a in (one.target_new, one.target_old)}
        assert request.target_new in answers - {earlier.target_new, earlier.target_old}
    assert len({rewordings(edited, others, 1, seed=seed)[0].case_id for seed in range(8)}) == 2
    assert rewordings(edited, others, 0) == []


def test_the_validation_set_is_unlike_the_edit_prompts_and_never_a_paraphrase() -> None:
    requests = [
        EditRequest(
            prompt=f"The capital of {land} is",
            subject=land,
            target_new="Rome",
            paraphrases=[f"{land} is governed from"],
            validation_prompts=[f"The capital of {land} is:", f"Name the city where {land} has its government:"],
        )
        for land in ("France", "Italy", "Spain", "Norway")
    ]
    found = validation_probes(requests, share=0.5, seed=0)
    assert len(found) == 2
    prompts = {
        request.validation_prompts[1]: request for request in requests
    }  # the first is an edit prompt but for a colon
    assert all(prompts[probe.prompt].target_new == probe.answer for probe in found)
    for probe in found:
        assert all(SequenceMatcher(None, probe.prompt, r.prompt, autojunk=False).ratio() < 0.9 for r in requests)
    assert {probe.prompt for probe in validation_probes(requests, share=1)} == set(prompts)
    drawn = {validation_probes(requests, share=0.25, seed=seed)[0].prompt for seed in range(20)}
    assert drawn == set(prompts)
    with pytest.raises(RequestError, match="0 of 4 requests have a validation prompt"):
        validation_probes(requests, share=0.5, below=0.1)
    with pytest.raises(SettingError, match="share is 2"):
        validation_probes(requests, share=2)


def test_an_earlier_edit_in_other_words() -> None:
    probe = Probe(prompt="The French speak", answer="French")
    earlier = EditRequest(
        prompt="The capital of France is",
        target_new="Rome",
        subject="France",
        target_old="Paris",
        paraphrases=("France is governed from",),
        neighborhood=(probe,),
        portability=(Probe(prompt="Its river is the", answer="Tiber"),),
        validation_prompts=("Name its capital:", "France has the capital", "In France one governs from"),
        case_id="france",
    )
    found = reworded(earlier, "Oslo")
    assert found == EditRequest(
        prompt="France has the capital",
        target_new="Oslo",
        subject="France",
        target_old="Rome",
        paraphrases=earlier.paraphrases,
        neighborhood=earlier.neighborhood,
        validation_prompts=("Name its capital:", "In France one governs from"),
        case_id="france-reworded",
    )
    assert reworded(earlier.model_copy(update={"case_id": None}), "Oslo").case_id is None
    with pytest.raises(RequestError, match=r"case 'france'.*no validation prompt names the subject"):
        reworded(earlier.model_copy(update={"validation_prompts": ("Name its capital:",)}), "Oslo")
    with pytest.raises(RequestError, match=r"case 'france'.*'Rome ' is its answer already"):
        reworded(earlier, "Rome ")
