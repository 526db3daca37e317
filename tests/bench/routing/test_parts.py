"""Requests in parts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corsa_plugins.bench.routing.parts import request_template, shared_value, split_requests, write_parts
from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from tests.support.routing import CAPITALS, PEOPLE


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.data())
def test_parts_are_equal_and_keep_everything_in_order(size, data):
    requests = [EditRequest(prompt=f"p{i}", target_new="t", case_id=i % 3) for i in range(size)]
    parts = split_requests(requests, data.draw(st.integers(1, size)))
    assert [request for part in parts for request in part] == requests
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    by_case = split_requests(requests, lambda request: request.case_id)
    assert [part[0].case_id for part in by_case] == sorted({request.case_id for request in requests})
    assert all(len({request.case_id for request in part}) == 1 for part in by_case)
    assert sum(map(len, by_case)) == size


@pytest.mark.parametrize("by", [0, 4, -1])
def test_more_parts_than_requests_are_refused(by):
    with pytest.raises(SettingError, match="cannot be split"):
        split_requests([*CAPITALS, *PEOPLE], by)


def test_groups_are_put_together_to_parts_of_about_equal_size():
    sizes = {"a": 5, "b": 1, "c": 3, "d": 2, "e": 1}
    requests = [
        EditRequest(prompt=f"{name} {i}", target_new="t") for i in range(5) for name in sizes if i < sizes[name]
    ]
    parts = split_requests(requests, lambda request: request.prompt[0], parts=3)
    assert sorted(request.prompt for part in parts for request in part) == sorted(r.prompt for r in requests)
    owners = [{request.prompt[0] for request in part} for part in parts]
    assert sum(map(len, owners)) == len(sizes)  # no group is torn apart
    assert sorted(map(len, parts)) == [3, 4, 5]
    for part in parts:
        assert [requests.index(request) for request in part] == sorted(requests.index(request) for request in part)
    for parts in (0, 6):
        with pytest.raises(SettingError, match="give 1 to 5"):
            split_requests(requests, lambda request: request.prompt[0], parts=parts)
    with pytest.raises(SettingError, match="goes with a function"):
        split_requests(requests, 2, parts=2)


def test_the_template_is_the_prompt_without_its_subject():
    request = EditRequest(prompt="The capital of France is", subject="France", target_new="Oslo")
    assert request_template(request) == "The capital of {} is"
    with pytest.raises(SettingError, match="has no subject"):
        request_template(CAPITALS[0])


def test_what_requests_share_is_a_field_of_theirs():
    request = EditRequest(prompt="The capital of France is", subject="France", target_new="Oslo", case_id="lonely")
    assert [shared_value(field)(request) for field in ("template", "subject", "target_new")] == [
        "The capital of {} is",
        "France",
        "Oslo",
    ]
    with pytest.raises(SettingError, match=r"case 'lonely' .* has no target_old"):
        shared_value("target_old")(request)
    with pytest.raises(SettingError, match="field is 'prompt': it must be one of template, subject"):
        shared_value("prompt")


@pytest.mark.parametrize("size", [1, 9, 10])
def test_parts_are_files_that_sort_as_they_do(tmp_path, size):
    parts = [[EditRequest(prompt=f"p{number}", target_new="t")] for number in range(size)]
    paths = write_parts(parts, tmp_path / "parts")
    assert sorted((tmp_path / "parts").iterdir()) == paths
    assert [read_requests(path) for path in paths] == parts
    with pytest.raises(SettingError, match="is not an empty folder"):
        write_parts(parts, tmp_path / "parts")


def test_a_part_that_cannot_be_read_back_leaves_no_part(tmp_path):
    contradiction = [EditRequest(prompt="p", target_new=target) for target in "ab"]
    with pytest.raises(ValueError, match="p"):
        write_parts([CAPITALS, contradiction], tmp_path / "parts")
    assert not list(tmp_path.iterdir())
