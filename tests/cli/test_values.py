"""Layers, numbers and tokens as they are written on the command line, and folders that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from corsa_plugins.cli.values import check_folder, check_results, parse_layers, parse_numbers, parse_tokens
from corsa_plugins.errors import SettingError


@pytest.mark.parametrize(
    ("text", "layers"),
    [("4", (4,)), ("4,5,6", (4, 5, 6)), ("4-8", (4, 5, 6, 7, 8)), (" 9, 1-2,2", (1, 2, 9)), ("3-3", (3,))],
)
def test_layers_are_numbers_and_ranges(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "5-4", "1.5"])
def test_layers_that_are_none_are_refused(text):
    with pytest.raises(SettingError, match="layers is"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("500", 500),
        ("100k", 100_000),
        ("1M", 10**6),
        ("2.5m", 2_500_000),
        ("1_000", 1000),
        ("1B", 10**9),
        ("0.8k", 800),
    ],
)
def test_tokens_may_be_thousands_and_millions(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "k", "1e6", "1 M x"])
def test_tokens_that_are_no_number_are_refused(text):
    with pytest.raises(SettingError, match="tokens are"):
        parse_tokens(text)


def test_no_layers_are_none() -> None:
    assert parse_layers(None) is None


def test_numbers_stand_between_spaces_or_commas() -> None:
    assert parse_numbers("0.5 1,2", "--weights") == [0.5, 1, 2]
    for text in ("", " ,", "a", "1;2"):
        with pytest.raises(SettingError, match=r"^--weights is"):
            parse_numbers(text, "--weights")


def test_a_file_is_no_folder_for_results(tmp_path: Path) -> None:
    check_folder(None)
    check_folder(tmp_path)
    check_folder(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file: name a folder for the results"):
        check_folder(tmp_path / "file")


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("corsa evaluate", "records.jsonl"),
        ("corsa evaluate-adapters", "routes.jsonl"),
        ("corsa protocol", "corsa/run.json"),
    ],
)
def test_results_of_another_command_keep_their_page(own: str, file: str, tmp_path: Path) -> None:
    others = [name for name in ("corsa evaluate", "corsa evaluate-adapters", "corsa protocol") if name != own]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    for command in (own, *others):
        check_results(None, command)
        check_results(tmp_path / "new", command)
        check_results(tmp_path, command)  # there is no page that could be replaced
    (tmp_path / "report.html").touch()
    check_results(tmp_path, own)
    for command in others:
        with pytest.raises(SettingError, match=rf"holds results of {own} \({file}\), whose report\.html would be"):
            check_results(tmp_path, command)
    with pytest.raises(NotADirectoryError, match="name a folder"):
        check_results(tmp_path / "report.html", own)
