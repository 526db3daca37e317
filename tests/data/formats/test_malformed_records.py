"""Whatever a record holds, it becomes requests or a reported problem, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.data.formats import FormatError, formats, get_format, read_format
from corsa_plugins.data.formats.base import Drops, RecordError
from corsa_plugins.data.formats.fields import as_text
from corsa_plugins.data.formats.paths import leaf_fields
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from tests.support.samples import DATA, SAMPLES, records

RECORDS = {name: records(file)[0] for name, file in SAMPLES.items()}
FIELDS = sorted({field.partition(".")[0].partition("[")[0] for form in formats() for field in form.mapping})

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", " ", "{}", "\ud800", "a", 10**400])
    | st.text(max_size=6)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FIELDS, "str", "prompt", "answers", "x\ud800"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(record, path=()):
    """Every place in a record, as a path of keys and indices."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def put(record, path, value, *, delete):
    copy = json.loads(json.dumps(record))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if delete:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return copy


def convert(name, record):
    """The requests of a record, or none if it is reported."""
    try:
        requests = get_format(name).convert(record, 0, Drops())
    except RecordError:
        return []
    finish = get_format(name).finish
    return finish(requests) if finish else requests


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SAMPLES)), record=st.dictionaries(st.sampled_from(FIELDS), values, max_size=8))
def test_any_fields_with_any_values(name, record):
    assert all(isinstance(request, EditRequest) for request in convert(name, record))
    assert all(isinstance(field, str) for field in leaf_fields(record))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(RECORDS)), value=values, delete=st.booleans())
def test_a_good_record_with_one_thing_wrong(tmp_path_factory, data, name, value, delete):
    path = data.draw(st.sampled_from(list(places(RECORDS[name]))))
    requests = convert(name, put(RECORDS[name], path, value, delete=delete))
    for request in requests:
        file = tmp_path_factory.mktemp("one") / "r.jsonl"
        write_requests(file, [request])
        assert read_requests(file) == [request]


@settings(max_examples=30, deadline=None)
@given(items=st.lists(values, min_size=1, max_size=4))
def test_any_json_file_is_read_or_refused(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("any") / "any.json"
    path.write_text(json.dumps(items))
    for name in (None, "mquake", "knowedit"):
        try:
            result = read_format(name, path)
        except FormatError as error:
            str(error).encode("utf-8")  # it can be shown on any terminal
        else:
            assert result.requests


def test_every_field_that_is_needed_is_named_when_it_is_missing():
    for name, needed in {
        "counterfact": ["requested_rewrite"],
        "zsre": ["src", "alt"],
        "zsre-answers": ["src", "answers"],
        "zsre-kilt": ["input", "alternatives"],
        "knowedit": ["prompt", "target_new"],
        "mquake": ["requested_rewrite", "new_answer"],
        "atoke-me": ["requested_rewrite"],
        "rippleedits": ["edit"],
        "codeupdatearena": ["problem", "ref_solution"],
        "codeupdatearena-update": ["update"],
    }.items():
        for field in needed:
            record = {key: value for key, value in RECORDS[name].items() if key != field}
            with pytest.raises(RecordError, match=f"'{field}'"):
                get_format(name).convert(record, 0, Drops())


@pytest.mark.parametrize("name", RECORDS)
def test_a_field_without_which_there_is_no_request_is_named(name):
    reasons = {}
    for field in RECORDS[name]:
        record = {key: value for key, value in RECORDS[name].items() if key != field}
        try:
            assert get_format(name).convert(record, 0, Drops())
        except RecordError as error:
            reasons[field] = str(error)
    assert reasons
    assert all(f"'{field}'" in reason for field, reason in reasons.items())


def test_names_that_are_not_unicode_can_be_shown(tmp_path):
    strange = {**RECORDS["knowedit"], "x\ud800": 1}
    wrong = {**RECORDS["knowedit"], "locality": {"y\ud800": 3}}
    (tmp_path / "k.json").write_text(json.dumps([strange, wrong]))
    result = read_format("knowedit", tmp_path / "k.json")
    assert result.dropped["x\\ud800"] == 1
    assert "'locality.y\\ud800' is a number" in result.problems[0].reason


def test_a_number_too_long_to_write_is_no_text():
    assert as_text(10**400) == "1" + "0" * 400
    assert as_text(10**5000) is None
    assert as_text(float("nan")) is None


class TestReporting:
    @pytest.fixture
    def mixed(self, tmp_path):
        good = RECORDS["counterfact"]
        lines = [json.dumps(good), "", "{broken", json.dumps([1]), json.dumps({**good, "requested_rewrite": 3})]
        lines += [json.dumps(good), "\udcff"]
        path = tmp_path / "mixed.jsonl"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        return path

    def test_problems_have_index_line_and_reason(self, mixed):
        result = read_format("counterfact", mixed)
        assert len(result.requests) == 2
        assert result.read == 6
        assert [(problem.index, problem.line) for problem in result.problems] == [(1, 3), (2, 4), (3, 5), (5, 7)]
        reasons = [problem.reason for problem in result.problems]
        assert "not JSON" in reasons[0]
        assert reasons[1] == "a list instead of an object"
        assert "'requested_rewrite' is a number; it should be an object" in reasons[2]
        assert "not UTF-8" in reasons[3]

    def test_strict_stops_at_the_first(self, mixed):
        with pytest.raises(FormatError, match=r"record 1 \(line 3\): not JSON") as caught:
            read_format("counterfact", mixed, strict=True)
        assert len(caught.value.problems) == 1

    def test_strict_is_content_with_good_records(self):
        assert read_format("counterfact", DATA / "counterfact.json", strict=True).requests

    def test_a_malformed_record_adds_nothing_to_what_was_dropped(self, mixed):
        assert read_format("counterfact", mixed).dropped["pararel_idx"] == 2

    def test_limit_counts_records(self, mixed):
        result = read_format("counterfact", mixed, limit=3)
        assert (result.read, len(result.requests), len(result.problems)) == (3, 1, 2)

    def test_numbers_are_text_where_text_is_needed(self, tmp_path):
        record = {**RECORDS["zsre"], "alt": 1998, "answers": [1752]}
        (tmp_path / "z.json").write_text(json.dumps([record]))
        (request,) = read_format("zsre", tmp_path / "z.json").requests
        assert (request.target_new, request.target_old) == ("1998", "1752")
