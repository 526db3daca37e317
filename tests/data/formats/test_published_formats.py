"""Each published format: its records become what its table says, and nothing is left out without being counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corsa_plugins.data.formats import FORMATS, FormatError, RecordError, detect_format, get_format, read_format
from corsa_plugins.data.formats.fields import covers, leaf_fields
from corsa_plugins.data.formats.rippleedits import take_apart
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError

DATA = Path(__file__).parent / "data"
FILES = {
    "counterfact": "counterfact.json",
    "multi-counterfact": "counterfact.json",
    "easyedit": "easyedit.json",
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
            portability=(
                Probe(
                    prompt="What does one pay with in the country of Autonomous University of Madrid?", answer="Kronor"
                ),
            ),
            case_id=3,
        )

    def test_what_is_dropped(self):
        dropped = read("counterfact").dropped
        assert dropped["attribute_prompts"] == 3
        assert dropped["generation_prompts"] == 1
        assert dropped["requested_rewrite.target_new.id"] == 2

    def test_easyedit_s_form_has_the_same_facts(self):
        published, theirs = read("counterfact").requests[1], read("easyedit").requests[0]
        assert theirs.neighborhood == (Probe(prompt="Jean Renoir is a native speaker of", answer="French"),)
        assert theirs == published.model_copy(update={"neighborhood": theirs.neighborhood, "case_id": 0})

    def test_easyedit_s_added_question_is_a_portability_probe(self):
        added, without = read("counterfact").requests
        assert [probe.answer for probe in added.portability] == ["Kronor"]
        assert without.portability == ()


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

    def test_a_true_alternative_has_no_outdated_answer(self):
        request = read("zsre").requests[2]
        assert (request.target_new, request.target_old) == ("Liffey", None)
        assert read("zsre").dropped["answers (the same as the target)"] == 1

    @pytest.mark.parametrize("name", ["zsre", "zsre-answers"])
    def test_easyedit_s_added_question_is_a_portability_probe(self, name):
        _, without, added = read(name).requests
        assert without.portability == ()
        (probe,) = added.portability
        assert (probe.prompt.split()[0], probe.answer) == ("Into", "Dublin Bay")

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
        recent, counterfact, zsre, _ = read("knowedit").requests
        assert recent.target_old is None
        assert [probe.answer for probe in recent.portability] == ["no", "Europe", "Berlin"]
        assert recent.neighborhood == (
            Probe(prompt="The name of the father of Leo Arons is", answer="Albert Arons"),
            Probe(prompt="The place of death of Leo Arons, which is not Berlin, is", answer="Potsdam"),
        )
        assert [probe.aliases for probe in recent.portability] == [
            ("incorrect",),
            ("European continent", "Old Continent"),
            ("Berlin, Germany",),
        ]
        assert counterfact.target_old == "mayor of Vienna"
        assert [probe.answer for probe in counterfact.neighborhood] == ["male", "mayor of Vienna"]
        assert zsre.target_old == "Aspidoceratidae"
        assert zsre.paraphrases == ("What family are Epaspidoceras?",)

    def test_an_edit_to_what_is_true_has_no_outdated_answer(self):
        result = read("knowedit")
        assert (result.requests[3].target_new, result.requests[3].target_old) == ("Crater", None)
        assert result.dropped["ground_truth (the same as the target)"] == 1

    def test_dropped_answers_are_counted(self):
        dropped = read("knowedit").dropped
        assert dropped["portability (no prompt or no answer)"] == 1
        assert dropped["locality (answers that the question excludes)"] == 2
        assert dropped["locality (no answer but the excluded one)"] == 1

    def test_every_name_that_a_question_leaves_is_asked_for_or_counted(self, tmp_path):
        groups = [["Berlin", "Berlin, Germany"], ["Potsdam", "Potsdam", "Bornstedt"], "Bornim"]
        record = records("knowedit.json")[0]
        record["locality"] = {"Forgetfulness": [{**record["locality"]["Forgetfulness"][0], "ground_truth": groups}]}
        (tmp_path / "k.json").write_text(json.dumps([record]))
        result = read_format("knowedit", tmp_path / "k.json")
        (probe,) = result.requests[0].neighborhood
        assert (probe.answer, probe.aliases) == ("Potsdam", ("Bornstedt", "Bornim"))
        assert result.dropped["locality (answers that the question excludes)"] == 2
        assert result.dropped["locality (repeated answers)"] == 1

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
        assert {probe.aliases for probe in country.portability} == {("Roma", "Rome, Italy")}

    @pytest.mark.parametrize(
        ("alias", "aliases", "repeated"), [(None, (), 0), ("Roma", ("Roma",), 0), (["Rome", "Roma", ""], ("Roma",), 1)]
    )
    def test_aliases_however_they_are_given(self, alias, aliases, repeated, tmp_path):
        case = {**records("mquake.json")[0], "new_answer_alias": alias}
        (tmp_path / "m.json").write_text(json.dumps([case]))
        result = read_format("mquake", tmp_path / "m.json")
        assert {probe.aliases for probe in result.requests[-1].portability} == {aliases}
        assert result.dropped.get("new_answer_alias (repeated answers)", 0) == repeated

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

    def test_each_answer_has_its_own_aliases(self):
        aliases = {
            "Manchester United F.C.": ("Manchester Red Devils",),
            "Southampton F.C.": ("Soton FC",),
            "Arsenal F.C.": ("Arsenal football club",),
        }
        probes = [p for r in read("atoke-me").requests for p in (*r.portability, *r.neighborhood)]
        assert {probe.answer for probe in probes} == set(aliases)
        assert all(probe.aliases == aliases[probe.answer] for probe in probes)

    @pytest.mark.parametrize("value", [["Soton FC", "Arsenal football club"], [["Soton FC", "Arsenal"]]])
    def test_aliases_that_no_step_can_be_told_of_are_dropped(self, value, tmp_path):
        case = {**records("atoke_me.json")[0], "new_answer_alias": value}
        (tmp_path / "a.json").write_text(json.dumps([case]))
        result = read_format("atoke-me", tmp_path / "a.json")
        assert result.dropped["new_answer_alias (not one list for each rewrite)"] == 2
        assert {probe.aliases for probe in result.requests[1].portability} == {(), ("Soton FC",)}

    def test_a_single_edit_outside_a_list(self, tmp_path):
        case = records("atoke_me.json")[0]
        single = {**case, "requested_rewrite": case["requested_rewrite"][0]}
        single["history_evaluation"] = case["history_evaluation"][0]
        single |= {"answer_alias": case["answer_alias"][0], "new_answer_alias": case["new_answer_alias"][:1]}
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
        citizenship, bowl, film = read("rippleedits").requests
        assert citizenship.prompt == "The name of the country of citizenship of Leonardo DiCaprio is"
        assert (citizenship.target_new, citizenship.target_old) == ("Syria", "United States of America")
        assert citizenship.subject == "Leonardo DiCaprio"
        assert [probe.answer for probe in citizenship.portability] == ["Arabic", "Syria", "Damascus", "Arabic"]
        assert [probe.answer for probe in citizenship.neighborhood] == ["Irmelin DiCaprio", "United States of America"]
        assert (bowl.subject, bowl.target_new, bowl.target_old) == ("Super Bowl LV", "Super Bowl LVI", None)
        assert (film.subject, film.target_new) == ("This is Dune", "Ada Brook")

    def test_further_answers_and_other_names_are_aliases(self):
        citizenship = read("rippleedits").requests[0]
        assert [probe.aliases for probe in citizenship.portability] == [
            ("Arabic language",),
            ("Syrian Arab Republic",),
            ("Sham", "Sham city"),
            ("Arabic language",),
        ]
        assert [probe.aliases for probe in citizenship.neighborhood] == [("Irmelin Indenbirken",), ("USA",)]

    def test_a_letter_alone_is_no_alias(self, tmp_path):
        record = records("rippleedits.json")[0]
        (answer,) = record["Relation_Specificity"][0]["test_queries"][0]["answers"]
        answer["aliases"] = ["I", "7", "Irmelin"]
        (tmp_path / "r.json").write_text(json.dumps([record]))
        result = read_format("rippleedits", tmp_path / "r.json")
        assert result.requests[0].neighborhood[0].aliases == ("7", "Irmelin")
        assert result.dropped["Relation_Specificity[].test_queries[].answers[].aliases (a letter alone)"] == 1

    @pytest.mark.parametrize("change", [{"subject_id": "Q9"}, {"phrase": "Who?"}, {"relation": "NONE"}])
    def test_only_a_plain_query_about_the_subject_names_it(self, change, tmp_path):
        film = records("rippleedits.json")[2]
        film["Relation_Specificity"][0]["test_queries"][0] |= change
        (tmp_path / "r.json").write_text(json.dumps([film]))
        with pytest.raises(FormatError, match="more than once"):
            read_format("rippleedits", tmp_path / "r.json")

    def test_one_of_alternatives_is_asked_and_the_others_counted(self):
        dropped = read("rippleedits").dropped
        assert dropped["Logical_Generalization[].test_queries (alternatives)"] == 1
        assert dropped["Forgetfulness[].test_queries (answers that the question excludes)"] == 2

    def test_a_question_is_not_answered_by_what_it_excludes(self, tmp_path):
        record = records("rippleedits.json")[0]
        answers = record["Forgetfulness"][0]["test_queries"][0]["answers"]
        assert answers[0] == {"value": "Syrian Arab Republic", "aliases": ["Syria"]}
        assert read("rippleedits").requests[0].neighborhood[-1].answer == answers[1]["value"]
        del answers[1]
        (tmp_path / "r.json").write_text(json.dumps([record]))
        result = read_format("rippleedits", tmp_path / "r.json")
        assert len(result.requests[0].neighborhood) == 1
        assert result.dropped["Forgetfulness[].test_queries (no answer but the excluded one)"] == 1

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
        assert "A second test" not in prompt
        assert prompt.endswith("== 5\nSolution:")
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
            ("easyedit.json", "easyedit"),
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
        with pytest.raises(FormatError, match="none of 3 records could be read as mquake") as caught:
            read("mquake", "zsre.json")
        assert len(caught.value.problems) == 3
