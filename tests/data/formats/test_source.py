"""Where records come from: JSON, JSON Lines, Parquet, the Hub; and what is said of files that are none of these."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from corsa_plugins.data.formats import FormatError, read_format
from corsa_plugins.data.formats.source import open_source
from corsa_plugins.errors import SettingError

DATA = Path(__file__).parent / "data"
RECORDS = json.loads((DATA / "counterfact.json").read_text("utf-8"))


@pytest.fixture
def expected():
    return read_format("counterfact", DATA / "counterfact.json").requests


class TestFiles:
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("form", ["list", "lines", "indented", "wrapped lines"])
    def test_every_way_to_write_json(self, tmp_path, expected, form, mark):
        text = {
            "list": json.dumps(RECORDS),
            "lines": "\n".join(json.dumps(record) for record in RECORDS),
            "indented": "\n\n " + json.dumps(RECORDS, indent=2),
            "wrapped lines": "\r\n\r\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS),
        }[form]
        (tmp_path / "f.txt").write_bytes(mark + text.encode("utf-8"))
        assert read_format("counterfact", tmp_path / "f.txt").requests == expected

    def test_one_object_is_one_record(self, tmp_path, expected):
        (tmp_path / "one.json").write_text(json.dumps(RECORDS[0], indent=1))
        assert read_format("counterfact", tmp_path / "one.json").requests == expected[:1]

    def test_json_lines_are_not_read_further_than_asked(self, tmp_path):
        path = tmp_path / "long.jsonl"
        path.write_text("".join(json.dumps(RECORDS[0]) + "\n" for _ in range(2000)))
        raws = open_source(str(path), None, None)
        assert next(raws).index == 0
        with path.open("r+") as stream:  # what was not read yet is still read from the file
            stream.truncate(path.stat().st_size // 2)
        assert 900 < sum(raw.error is None for raw in raws) < 1100

    def test_a_broken_first_line_is_one_problem(self, tmp_path, expected):
        (tmp_path / "f.jsonl").write_text('{"case_id": \n' + "\n".join(json.dumps(record) for record in RECORDS))
        result = read_format("counterfact", tmp_path / "f.jsonl")
        assert result.requests == expected
        assert [problem.index for problem in result.problems] == [0]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("", "is empty"),
            (" \n\n", "is empty"),
            ("[]", "holds no records"),
            (json.dumps(RECORDS)[:-40], "is the download complete"),
            ("<!DOCTYPE html><html>", "a web page"),
            ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
            ("case_id,prompt\n1,a", "neither JSON, JSON Lines nor Parquet"),
            ("[" * 100_000, "nested too deeply|not JSON"),
            ('["a"]', "none of 1 records"),
            ("[" + "1" * 5000 + "]", "not usable JSON"),
        ],
    )
    def test_what_is_not_a_data_set(self, tmp_path, content, reason):
        (tmp_path / "f.json").write_text(content)
        with pytest.raises(FormatError, match=reason) as caught:
            read_format("counterfact", tmp_path / "f.json")
        assert "f.json" in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(FormatError, match="no such file"):
            read_format("counterfact", tmp_path / "none.json")
        with pytest.raises(FormatError, match="is a directory"):
            read_format("counterfact", tmp_path)

    def test_a_split_of_a_file(self):
        with pytest.raises(SettingError, match="only data sets on the Hub have splits"):
            read_format("counterfact", DATA / "counterfact.json", split="train")

    def test_a_limit_of_nothing(self):
        with pytest.raises(SettingError, match="limit is 0"):
            read_format("counterfact", DATA / "counterfact.json", limit=0)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("counterfact") / "data"
    folder.mkdir()
    datasets.Dataset.from_list(RECORDS).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    datasets.Dataset.from_list(RECORDS[:1]).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder.parent


class TestHub:
    """Data sets as they lie on the Hub, in a folder: the library loads both in the same way."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        """What the library prepares stays out of the user's cache."""
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def test_a_data_set(self, parquet, expected):
        assert read_format("counterfact", f"hub:{parquet}").requests == expected
        assert read_format("counterfact", f"hub:{parquet}", split="test").requests == expected[:1]
        assert read_format(None, f"hub:{parquet}", limit=1).format == "counterfact"

    def test_a_parquet_file(self, parquet, expected):
        assert read_format(None, parquet / "data" / "train-00000-of-00001.parquet").requests == expected

    def test_a_split_that_is_not_there(self, parquet):
        with pytest.raises(FormatError, match="check the name, the split"):
            read_format("counterfact", f"hub:{parquet}", split="validation")

    def test_a_data_set_of_files(self, tmp_path):
        folder = tmp_path / "benchmark" / "wiki_recent"
        folder.mkdir(parents=True)
        shutil.copy(DATA / "knowedit.json", folder / "recent_test.json")
        result = read_format("knowedit", f"hub:{tmp_path}", split="wiki_recent")
        assert result.requests == read_format("knowedit", DATA / "knowedit.json").requests
        with pytest.raises(SettingError, match="the splits are wiki_recent, "):
            read_format("knowedit", f"hub:{tmp_path}", split="train")

    @pytest.mark.parametrize("name", ["counterfact", "knowedit"])
    def test_without_a_connection(self, name):
        # the tests run with HF_HUB_OFFLINE=1
        with pytest.raises(FormatError, match="download the file and name it instead"):
            read_format(name, "hub:")

    def test_a_format_that_is_not_there(self):
        with pytest.raises(SettingError, match="no data set of this format is known on the Hub"):
            read_format("rippleedits", "hub:")
        with pytest.raises(SettingError, match="which data set"):
            read_format(None, "hub:")
