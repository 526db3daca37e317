"""Each published format: its records become what its table says, and nothing is left out without being counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.errors import SettingError
from corsa_plugins.formats import FORMATS, FormatError, RecordError, detect_format, get_format, read_format
from corsa_plugins.formats.fields import covers, leaf_fields
from corsa_plugins.formats.rippleedits import take_apart
from corsa_plugins.requests import EditRequest, Probe, read_requests, write_requests

DATA = Path(__file__).parent / "data"
FILES = {
    "counterfact": "counterfact.json",
    "multi-counterfact": "counterfact.json",
    "zsre": "zsre.json",
    "zsre-answers": "zsre.json",
    "zsre-kilt": "zsre_kilt.jsonl",
    "alphaset": "alphaset.json",
    "knowedit": "knowedit.json",
    "mquake": "mquake.json",
    "mquake-remastered": "mquake_remastered.jsonl",
    "atoke-me": "atoke_me.json",
    "rippleedits": "rippleedits.json",
    "codeupdatearena": "codeupdatearena.jsonl",
    "codeupdatearena-update": "codeupdatearena.jsonl",
}


def read(name, file=None, **options):
    return read_format(name, DATA / (file or FILES[name]), **options)


def records(file):
    text = (DATA / file).read_text("utf-8")
    return json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", FORMATS)
class TestEveryFormat:
    def test_is_read_whole_and_round_trips(self, name, tmp_path):
        result = read(name)
        assert result.requests
        assert not result.problems
        assert result.read == len(records(FILES[name]))
        for at, request in enumerate(result.requests):  # one by one: those of a history contradict each other
            write_requests(tmp_path / f"{at}.jsonl", [request])
            assert read_requests(tmp_path / f"{at}.jsonl") == [request]

    def test_accounts_for_every_field_of_its_records(self, name):
        form = get_format(name)
        fields = {field for record in records(FILES[name]) for field in leaf_fields(record)}
        assert {
            field for field in fields if not any(covers(known, field) for known in (*form.mapping, *form.dropped))
        } == set()
        unused = {field for field in fields if not any(covers(used, field) for used in form.mapping)}
        named = {path.replace("[]", "") for path in form.dropped if any(covers(path, field) for field in unused)}
        result = read(name)
        assert named <= set(result.dropped)
        found = {path for path in form.mapping if any(covers(path, field) for field in fields)}
        assert result.mapping == {path: form.mapping[path] for path in form.mapping if path in found}

    def test_an_unknown_field_is_counted(self, name, tmp_path):
        first = records(FILES[name])[0]
        (tmp_path / "f.json").write_text(json.dumps([{**first, "novelty": {"a": [1, 2]}, "empty": None}]))
        dropped = read_format(name, tmp_path / "f.json").dropped
        assert dropped["novelty.a"] == 2
        assert "empty" not in dropped


class TestCounterFact:
    def test_a_record(self):
        first = read("counterfact").requests[0]
        assert first == EditRequest(
            prompt="Autonomous University of Madrid, which is located in",
            target_new="Sweden",
            target_old="Spain",
            subject="Autonomous University of Madrid",
            paraphrases=(
                "Houston. Autonomous University of Madrid is located in",
                "It rained. Autonomous University of Madrid, located in",
            ),
            neighborhood=(
                Probe(prompt="Biure is located in", answer="Spain"),
                Probe(prompt="Pamplona is located in", answer="Spain"),
            ),
            case_id=3,
        )

    def test_what_is_dropped(self):
        dropped = read("counterfact").dropped
        assert dropped["attribute_prompts"] == 3
        assert dropped["generation_prompts"] == 1
        assert dropped["requested_rewrite.target_new.id"] == 2


class TestZsre:
    def test_the_target_is_the_alternative_or_the_true_answer(self):
        alternative, answer = read("zsre").requests[1], read("zsre-answers").requests[1]
        assert (alternative.target_new, alternative.target_old) == ("Lamiinae", "Lecanorales")
        assert (answer.target_new, answer.target_old) == ("Lecanorales", None)
        assert read("zsre").dropped["answers (beyond the first)"] == 1

    def test_the_unrelated_question_gets_one_question_mark(self):
        assert read("zsre").requests[0].neighborhood == (
            Probe(prompt="nq question: who played desmond doss father in hacksaw ridge?", answer="Hugo Weaving"),
        )
        assert read("alphaset").requests[0].neighborhood[0].prompt.endswith("Ramen Stadium?")

    def test_the_json_lines_form(self):
        (request,) = read("zsre-kilt").requests
        assert (request.target_new, request.target_old, request.case_id) == ("Thames", "Severn", "a1")
        assert request.paraphrases == ("What river is crossed by the Iron Bridge?",)

    def test_an_empty_alternative_is_malformed(self, tmp_path):
        bad = {**records("zsre.json")[0], "alt": ""}
        (tmp_path / "z.json").write_text(json.dumps([bad, records("zsre.json")[1]]))
        result = read_format("zsre", tmp_path / "z.json")
        assert [problem.index for problem in result.problems] == [0]
        assert "'alt' is blank" in result.problems[0].reason

    def test_a_subject_is_spelled_as_in_the_question_or_left_out(self):
        result = read("alphaset")
        assert [request.subject for request in result.requests] == ["Parken Stadium", "karlite", None]
        assert result.dropped["subject (not named in the prompt)"] == 1


class TestKnowEdit:
    def test_answers_however_deep(self):
        recent, counterfact, zsre = read("knowedit").requests
        assert recent.target_old is None
        assert [probe.answer for probe in recent.portability] == ["no", "Europe", "Berlin"]
        assert recent.neighborhood == (Probe(prompt="The name of the father of Leo Arons is", answer="Albert Arons"),)
        assert counterfact.target_old == "mayor of Vienna"
        assert [probe.answer for probe in counterfact.neighborhood] == ["male", "mayor of Vienna"]
        assert zsre.target_old == "Aspidoceratidae"
        assert zsre.paraphrases == ("What family are Epaspidoceras?",)

    def test_dropped_answers_are_counted(self):
        dropped = read("knowedit").dropped
        assert dropped["portability (further answers and aliases)"] == 4
        assert dropped["portability (no prompt or no answer)"] == 1

    def test_a_biography(self):
        (request,) = read("knowedit", "wikibio.json").requests
        assert request.subject == "john russell reynolds"
        assert request.target_new == "He received general education from his father."
        assert request.neighborhood[0].answer == "medicine"


class TestMquake:
    @pytest.mark.parametrize("name", ["mquake", "mquake-remastered"])
    def test_each_rewrite_is_a_request_and_the_last_one_has_the_questions(self, name):
        sport, country = read(name).requests
        assert (sport.case_id, country.case_id) == ("1561-1", "1561-2")
        assert sport.prompt == "Dudley Town F.C. is associated with the sport of"
        assert (country.target_new, country.target_old) == ("Italy", "England")
        assert country.paraphrases == ("Which country was cricket created in?",)
        assert sport.portability == ()
        assert [probe.answer for probe in country.portability] == ["Rome", "Rome"]

    def test_flat_and_nested_targets_are_the_same(self):
        assert read("mquake").requests == read("mquake-remastered").requests

    def test_a_wrong_rewrite_spoils_its_case(self, tmp_path):
        case = records("mquake.json")[0]
        del case["requested_rewrite"][1]["target_new"]["str"]
        (tmp_path / "m.jsonl").write_text(json.dumps(case) + "\n" + json.dumps(records("mquake.json")[0]))
        result = read_format("mquake", tmp_path / "m.jsonl")
        assert len(result.requests) == 2
        (problem,) = result.problems
        assert (problem.index, problem.line) == (0, 1)
        assert "requested_rewrite[1].target_new.str" in problem.reason


class TestAtoke:
    def test_steps_follow_each_other(self):
        first, second = read("atoke-me").requests
        assert (first.case_id, second.case_id) == ("3-1", "3-2")
        assert first.prompt == second.prompt
        assert first.target_new == second.target_old == "Southampton F.C."

    def test_years_decide_what_a_question_tests(self):
        _, second = read("atoke-me").requests
        assert second.paraphrases == ("Which club does Billy Wrigglesworth play for?", "Billy Wrigglesworth plays for")
        assert {probe.answer for probe in second.neighborhood} == {"Southampton F.C."}
        assert all("1947 to 1948" in probe.prompt for probe in second.neighborhood)
        answers = {probe.prompt: probe.answer for probe in second.portability}
        assert answers["From 1948 to 1953, Billy Wrigglesworth is a player of"] == "Arsenal F.C."
        assert answers["Billy Wrigglesworth used to play for"] == "Southampton F.C."

    def test_a_single_edit_outside_a_list(self, tmp_path):
        case = records("atoke_me.json")[0]
        single = {**case, "requested_rewrite": case["requested_rewrite"][0]}
        single["history_evaluation"] = case["history_evaluation"][0]
        (tmp_path / "se.json").write_text(json.dumps([single]))
        assert detect_format(tmp_path / "se.json") == "atoke-me"
        assert read_format(None, tmp_path / "se.json").requests == read("atoke-me").requests[:1]

    def test_an_extended_period_is_nothing_to_edit(self, tmp_path):
        case = records("atoke_me.json")[0]
        case["requested_rewrite"][0]["target_new"] = case["requested_rewrite"][0]["target_true"]
        (tmp_path / "ee.json").write_text(json.dumps([case]))
        with pytest.raises(FormatError, match="nothing to edit"):
            read_format("atoke-me", tmp_path / "ee.json")

    def test_a_history_without_its_steps_is_dropped(self, tmp_path):
        case = records("atoke_me.json")[0]
        case["history_evaluation"] *= 2
        (tmp_path / "h.json").write_text(json.dumps([case]))
        result = read_format("atoke-me", tmp_path / "h.json")
        assert result.dropped["history_evaluation (not one for each rewrite)"] == 4
        assert not any(request.neighborhood for request in result.requests)


class TestRippleEdits:
    def test_a_record(self):
        citizenship, bowl = read("rippleedits").requests
        assert citizenship.prompt == "The name of the country of citizenship of Leonardo DiCaprio is"
        assert (citizenship.target_new, citizenship.target_old) == ("Syria", "United States of America")
        assert citizenship.subject == "Leonardo DiCaprio"
        assert [probe.answer for probe in citizenship.portability] == ["Arabic", "Syria", "Damascus", "Arabic"]
        assert [probe.answer for probe in citizenship.neighborhood] == ["Irmelin DiCaprio", "United States of America"]
        assert (bowl.subject, bowl.target_new, bowl.target_old) == ("Super Bowl LV", "Super Bowl LVI", None)

    def test_one_of_alternatives_is_asked_and_the_others_counted(self):
        dropped = read("rippleedits").dropped
        assert dropped["Logical_Generalization[].test_queries (alternatives)"] == 1
        assert dropped["Compositionality_I[].test_queries[].answers (beyond the first)"] == 1

    def test_the_readme_s_spelling(self, tmp_path):
        record = records("rippleedits.json")[0]
        record["Relation_Specifity"] = record.pop("Relation_Specificity")
        (tmp_path / "r.json").write_text(json.dumps([record]))
        assert read_format("rippleedits", tmp_path / "r.json").requests == read("rippleedits").requests[:1]

    @pytest.mark.parametrize(
        ("sentence", "relation", "original", "expected"),
        [
            ("The gender of A. B. is male.", "SEX_OR_GENDER", None, ("The gender of A. B. is", "male", "A. B.")),
            ("X follows Y.", "FOLLOWS", None, ("X follows", "Y", "X")),
            ("Is Leo Arons still alive? no.", "IS_ALIVE", None, ("Is Leo Arons still alive?", "no", "Leo Arons")),
            (
                "The name of the author of Dune is Martin King Jr..",
                "AUTHOR",
                None,
                ("The name of the author of Dune is", "Martin King Jr.", "Dune"),
            ),
            (  # the subject holds the wording; both sentences have it
                "The name of the director of This is Us is Ann.",
                "DIRECTOR",
                "The name of the director of This is Us is Bob.",
                ("The name of the director of This is Us is", "Ann", "This is Us"),
            ),
            (  # the answer holds it; the outdated one does not
                "The name of the anthem of Oz is What is Love.",
                "ANTHEM",
                "The name of the anthem of Oz is .",
                ("The name of the anthem of Oz is", "What is Love", "Oz"),
            ),
        ],
    )
    def test_taking_a_sentence_apart(self, sentence, relation, original, expected):
        assert take_apart(sentence, relation, original) == expected

    @pytest.mark.parametrize(
        ("sentence", "relation", "reason"),
        [
            ("The name of the director of This is Us is Ann.", "DIRECTOR", "more than once"),
            ("The mother of X is Y.", "MOTHER", "not worded as"),
            ("The name of the mother of X was Y.", "MOTHER", "nowhere"),
            ("A likes B.", "LIKES", "relation 'LIKES' is not known"),
        ],
    )
    def test_what_cannot_be_taken_apart_is_not_guessed(self, sentence, relation, reason):
        with pytest.raises(RecordError, match=reason):
            take_apart(sentence, relation)

    def test_an_edit_to_the_same_answer_is_malformed(self, tmp_path):
        record = records("rippleedits.json")[0]
        record["edit"]["original_fact"]["prompt"] = record["edit"]["prompt"]
        (tmp_path / "r.json").write_text(json.dumps([record, *records("rippleedits.json")]))
        (problem,) = read_format("rippleedits", tmp_path / "r.json").problems
        assert "nothing to edit" in problem.reason

    def test_an_unknown_former_answer_is_no_target_old(self, tmp_path):
        record = records("rippleedits.json")[0]
        record["edit"]["original_fact"]["prompt"] = "The name of the country of citizenship of Leonardo DiCaprio is ."
        (tmp_path / "r.json").write_text(json.dumps([record]))
        (request,) = read_format("rippleedits", tmp_path / "r.json").requests
        assert (request.target_new, request.target_old) == ("Syria", None)


class TestCodeUpdateArena:
    def test_one_problem_of_every_update_is_the_edit(self):
        first, second = read("codeupdatearena").requests
        assert first.case_id == "[math.hypot]:[add-argument]:[update-0]:[prog_syn-0]"
        assert first.target_new.startswith("import math\n\ndef distance_0")
        (other,) = first.portability
        assert "variant 3" in other.prompt
        assert other.answer.endswith("scale=3)")
        assert second.portability == ()

    def test_the_prompt_shows_one_test_and_no_update(self):
        result = read("codeupdatearena")
        prompt = result.requests[0].prompt
        assert "assert distance_0" in prompt
        assert "test_hidden" not in prompt
        assert "An argument" not in prompt
        assert result.dropped["unit_tests (beyond the first)"] == 3

    def test_the_note_is_in_the_edit_prompt_only(self):
        alone, noted = read("codeupdatearena").requests[0], read("codeupdatearena-update").requests[0]
        assert "An argument `scale` is added." in noted.prompt
        assert noted.prompt.endswith(alone.prompt)
        assert noted.paraphrases == (alone.prompt,)
        assert noted.portability == alone.portability


class TestRecognising:
    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("counterfact.json", "counterfact"),
            ("zsre_kilt.jsonl", "zsre-kilt"),
            ("knowedit.json", "knowedit"),
            ("wikibio.json", "knowedit"),
            ("mquake.json", "mquake"),
            ("mquake_remastered.jsonl", "mquake"),
            ("atoke_me.json", "atoke-me"),
            ("rippleedits.json", "rippleedits"),
        ],
    )
    def test_by_the_fields(self, file, name):
        assert detect_format(DATA / file) == name
        assert read_format(None, DATA / file).requests == read(name, file).requests

    @pytest.mark.parametrize(
        ("file", "candidates"),
        [
            ("zsre.json", ["zsre", "zsre-answers", "alphaset"]),
            ("codeupdatearena.jsonl", ["codeupdatearena", "codeupdatearena-update"]),
        ],
    )
    def test_several_readings_are_listed(self, file, candidates):
        with pytest.raises(FormatError, match="--format") as caught:
            detect_format(DATA / file)
        lines = str(caught.value).splitlines()[1:]
        assert [line.split()[0] for line in lines] == candidates

    def test_nothing_known(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
        with pytest.raises(FormatError, match="its fields are a, b"):
            detect_format(tmp_path / "a.jsonl")

    def test_edit_requests_are_said_to_be_that(self, tmp_path):
        write_requests(tmp_path / "r.jsonl", read("counterfact").requests)
        with pytest.raises(FormatError, match="perhaps edit requests already"):
            read_format(None, tmp_path / "r.jsonl")

    def test_a_misspelled_name(self):
        with pytest.raises(SettingError, match="did you mean 'counterfact'"):
            get_format("conterfact")
        assert get_format("Multi_CounterFact").name == "multi-counterfact"

    def test_the_wrong_format_says_so(self):
        with pytest.raises(FormatError, match="none of 2 records could be read as mquake") as caught:
            read("mquake", "zsre.json")
        assert len(caught.value.problems) == 2
