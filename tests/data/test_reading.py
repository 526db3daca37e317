"""Files of requests and probes: they give back what was written, and say everything that is wrong with them."""

from __future__ import annotations

import json
import logging
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.data.reading import read_probes, read_requests, write_probes, write_requests
from corsa_plugins.data.requests import MAX_REPORTED, EditRequest, Probe, RequestError, normalise_whitespace
from tests.support.records import edit_requests, probes


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def problems_of(path):
    with pytest.raises(RequestError) as caught:
        read_requests(path)
    return caught.value.problems


GOOD = {"prompt": "The capital of France is", "target_new": "Lyon"}


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(
        requests=st.lists(edit_requests(), min_size=1, max_size=4, unique_by=lambda r: normalise_whitespace(r.prompt))
    )
    def test_what_is_written_is_read_back_equal(self, tmp_path_factory, requests):
        path = tmp_path_factory.mktemp("requests") / "requests.jsonl"
        write_requests(path, requests)
        assert read_requests(path) == requests
        assert len(path.read_bytes().splitlines()) >= len(requests)

    @settings(max_examples=30, deadline=None)
    @given(items=st.lists(probes, min_size=1, max_size=4))
    def test_probes_too(self, tmp_path_factory, items):
        path = tmp_path_factory.mktemp("probes") / "probes.jsonl"
        write_probes(path, items)
        assert read_probes(path) == items

    def test_a_request_is_also_a_fact_to_watch(self, tmp_path):
        path = write(tmp_path / "watch.jsonl", GOOD, {"prompt": "Q?", "answer": "A"}, '"Only asked"')
        assert read_probes(path) == [
            Probe(prompt="The capital of France is", answer="Lyon"),
            Probe(prompt="Q?", answer="A"),
            Probe(prompt="Only asked"),
        ]

    def test_text_is_kept_readable_in_the_file(self, tmp_path):
        write_requests(tmp_path / "r.jsonl", [EditRequest(prompt="日本の首都は", target_new="京都")])
        assert "京都" in (tmp_path / "r.jsonl").read_text("utf-8")


class TestReading:
    def test_a_byte_order_mark_blank_lines_and_carriage_returns_are_tolerated(self, tmp_path):
        path = tmp_path / "r.jsonl"
        line = json.dumps(GOOD).encode()
        path.write_bytes(b"\xef\xbb\xbf\r\n" + line + b"\r\n\r\n   \n")
        assert read_requests(path) == [EditRequest(**GOOD)]

    def test_line_separators_inside_a_string_do_not_cut_it(self, tmp_path):
        request = EditRequest(prompt="one\u2028two\x85three", target_new="x")
        write_requests(tmp_path / "r.jsonl", [request])
        assert read_requests(tmp_path / "r.jsonl") == [request]

    def test_every_problem_is_reported_with_its_line_case_and_field(self, tmp_path):
        path = write(
            tmp_path / "r.jsonl",
            GOOD,
            {**GOOD, "prompt": "A is", "target_new": 3, "case_id": "x7", "target_odl": "B"},
            "{not json",
            [1, 2],
            {"target_new": "x", "paraphrases": "a string"},
            {**GOOD, "prompt": "B is", "neighborhood": [{"prompt": " "}]},
            {**GOOD, "prompt": "C is", "portability": [{"prompt": "D?", "answer": "E", "aliases": ["F", " "]}]},
            {**GOOD, "prompt": "G is", "portability": [{"prompt": "H?", "aliases": ["I"]}]},
            {**GOOD, "prompt": "J is", "portability": [{"prompt": "K?", "answer": "L", "aliases": "M"}]},
            {**GOOD, "prompt": "N is", "portability": [{"prompt": "O?", "answer": "P", "answer_alias": ["Q"]}]},
        )
        found = problems_of(path)
        for line, field, text in [
            (2, "target_new", "should be a string"),
            (2, "target_odl", "did you mean 'target_old'?"),
            (5, "prompt", "is missing"),
            (5, "paraphrases", "should be a list"),
            (6, "neighborhood[0].prompt", "is blank"),
            (7, "portability[0].aliases[1]", "is blank"),
            (8, "portability[0].aliases", "give one of them as the answer"),
            (9, "portability[0].aliases", "should be a list"),
            (10, "portability[0].answer_alias", "did you mean 'aliases'?"),
        ]:
            matching = [p for p in found if f"r.jsonl, line {line}" in p and f"field '{field}'" in p]
            assert len(matching) == 1, (line, field, found)
            assert text in matching[0]
        assert all("case 'x7'" in p for p in found if "line 2," in p)
        assert any("line 3: not JSON" in p for p in found)
        assert any("line 4: an array instead of a JSON object" in p for p in found)
        assert len(found) == 11

    def test_a_long_list_of_problems_is_cut_and_counted(self, tmp_path):
        path = write(tmp_path / "r.jsonl", *["nope"] * (MAX_REPORTED + 13))
        with pytest.raises(RequestError, match="and 13 more") as caught:
            read_requests(path)
        assert str(caught.value).count("not JSON") == MAX_REPORTED
        assert len(caught.value.problems) == MAX_REPORTED + 13

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("ground_truth", "target_old"), ("rephrase_prompt", "paraphrases"), ("promt", "prompt"), ("ID", "case_id")],
    )
    def test_the_names_of_other_tools_and_misspellings_get_a_hint(self, tmp_path, name, hint):
        (problem,) = problems_of(write(tmp_path / "r.jsonl", {**GOOD, name: "x"}))
        assert f"field '{name}': unknown field; did you mean '{hint}'?" in problem

    def test_a_missing_file_a_directory_and_an_empty_file_are_told_apart(self, tmp_path):
        empty = tmp_path / "empty.jsonl"
        empty.write_bytes(b"\xef\xbb\xbf\n \n")
        assert "no such file" in problems_of(tmp_path / "missing.jsonl")[0]
        assert "is a directory" in problems_of(tmp_path)[0]
        assert "is empty" in problems_of(empty)[0]

    def test_bytes_that_are_not_utf8_are_located(self, tmp_path):
        path = tmp_path / "r.jsonl"
        path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}\n')
        (problem,) = problems_of(path)
        assert "line 2: not UTF-8 (byte 16 of the line)" in problem

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ('[{"prompt": "a"},', "looks like a JSON array"),
            ('{"prompt": "a", "prompt": "b", "target_new": "c"}', "'prompt' is given twice"),
            ("[" * 100_000, "nested too deeply"),
            ('{"prompt": "a\\ud800", "target_new": "c"}', "half a surrogate pair at character 2"),
            ("null", "null instead of a JSON object"),
        ],
    )
    def test_odd_json_is_an_error_not_a_surprise(self, tmp_path, line, text):
        (problem,) = problems_of(write(tmp_path / "r.jsonl", line))
        assert "line 1" in problem
        assert text in problem

    def test_contradictions_stop_and_name_both_lines(self, tmp_path):
        path = write(
            tmp_path / "r.jsonl", GOOD, "", {**GOOD, "prompt": "The  capital of\tFrance is", "target_new": "Nice"}
        )
        (problem,) = problems_of(path)
        assert "lines 1 and 3" in problem
        assert "'Lyon' (line 1), 'Nice' (line 3)" in problem

    def test_duplicates_warn_and_are_kept(self, tmp_path, caplog):
        path = write(tmp_path / "r.jsonl", GOOD, GOOD)
        with caplog.at_level(logging.WARNING, logger="corsa_plugins"):
            assert len(read_requests(path)) == 2
        assert "lines 1 and 2" in caplog.text

    def test_two_requests_of_one_name_warn(self, tmp_path, caplog):
        others = [{**GOOD, "prompt": f"{name} is", "case_id": 7} for name in ("A", "B")]
        assert len(read_requests(write(tmp_path / "r.jsonl", *others, {**GOOD, "case_id": 8}))) == 3
        assert "r.jsonl: 1 case_ids are given more than once, 7 in lines 1 and 2" in caplog.text
        caplog.clear()
        read_requests(write(tmp_path / "r.jsonl", others[0], {**others[1], "case_id": "7"}))
        assert not caplog.text


class TestWriting:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "r.jsonl"
        write_requests(path, [EditRequest(**GOOD)])
        before = path.read_bytes()

        def no_space(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            write_requests(path, [EditRequest(prompt="B is", target_new="c")])
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["r.jsonl"]

    def test_what_could_not_be_read_back_is_not_written(self, tmp_path):
        path = tmp_path / "r.jsonl"
        with pytest.raises(RequestError, match="there are no requests"):
            write_requests(path, [])
        with pytest.raises(RequestError, match="requests 0 and 1 contradict each other"):
            write_requests(path, [EditRequest(**GOOD), EditRequest(**{**GOOD, "target_new": "Nice"})])
        assert not path.exists()

    def test_folders_are_made_and_the_file_is_as_readable_as_any_other(self, tmp_path):
        path = tmp_path / "new" / "r.jsonl"
        write_requests(path, [EditRequest(**GOOD)])
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_link_is_followed_not_replaced(self, tmp_path):
        (tmp_path / "real.jsonl").touch()
        (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
        write_requests(tmp_path / "link.jsonl", [EditRequest(**GOOD)])
        assert (tmp_path / "link.jsonl").is_symlink()
        assert read_requests(tmp_path / "real.jsonl") == [EditRequest(**GOOD)]
