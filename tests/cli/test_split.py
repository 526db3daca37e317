"""``corsa split``."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest

REQUESTS = [
    EditRequest(prompt=f"The {thing} of {land} is", subject=land, target_new=land[::-1], target_old="x")
    for land in ("France", "Italy", "Spain")
    for thing in ("capital", "currency", "anthem")
] + [EditRequest(prompt="Anna plays the", subject="Anna", target_new="flute", target_old="x")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_requests(tmp_path / "facts.jsonl", REQUESTS)
    return tmp_path / "facts.jsonl"


def call(file: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["split", str(file), "-o", str(file.parent / "parts"), *arguments])
    return int(exit_.value.code or 0)


def parts(file: Path) -> list[list[EditRequest]]:
    return [read_requests(path) for path in sorted((file.parent / "parts").iterdir())]


def test_parts_in_order_are_the_file_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(file, "--parts", "3") == 0
    assert [request for part in parts(file) for request in part] == REQUESTS
    assert sorted(len(part) for part in parts(file)) == [3, 3, 4]
    assert "10 requests in 3 parts" in capsys.readouterr().out


@pytest.mark.parametrize(("by", "groups"), [("template", 4), ("subject", 4), ("target-new", 4), ("target-old", 1)])
def test_what_is_shared_stays_together(file: Path, by: str, groups: int) -> None:
    assert call(file, "--by", by) == 0
    found = parts(file)
    assert len(found) == groups
    assert sorted(r.prompt for part in found for r in part) == sorted(r.prompt for r in REQUESTS)
    of = {
        "template": lambda r: r.prompt.replace(r.subject, ""),
        "subject": lambda r: r.subject,
        "target-new": lambda r: r.target_new,
        "target-old": lambda r: r.target_old,
    }[by]
    assert all(len({of(request) for request in part}) == 1 for part in found)


def test_groups_fill_parts(file: Path) -> None:
    assert call(file, "--by", "subject", "--parts", "2") == 0
    assert sorted(len(part) for part in parts(file)) == [4, 6]


def test_more_than_nine_parts_sort_as_they_are(file: Path) -> None:
    assert call(file, "--parts", "10") == 0
    assert [part[0] for part in parts(file)] == REQUESTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --parts, --by, or both"),
        (["--parts", "11"], "10 requests cannot be split into 11 parts"),
        (["--by", "subject", "--parts", "5"], "4 groups cannot be put into 5 parts"),
    ],
)
def test_refusals_leave_nothing_behind(
    file: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(file, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (file.parent / "parts").exists()


def test_what_a_request_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_requests(tmp_path / "f.jsonl", [EditRequest(prompt="a", target_new="b", case_id="lonely")])
    for by, field in (("template", "subject"), ("target-old", "target_old")):
        assert call(tmp_path / "f.jsonl", "--by", by) == 2
        assert f"case 'lonely' ('a') has no {field}" in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_left_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "parts").mkdir()
    (file.parent / "parts" / "part-1.jsonl").write_text("mine")
    assert call(file, "--parts", "2") == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (file.parent / "parts" / "part-1.jsonl").read_text() == "mine"
