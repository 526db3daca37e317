"""Documents from files and data sets."""

from __future__ import annotations

import json

import pytest
import torch

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.texts import TextError, read_texts
from corsa_plugins.errors import SettingError
from tests.conftest import DOCUMENTS


class TestTexts:
    WANTED = ("First: ünï.", "Second, with  spaces ", "{third}")

    def test_lines_are_documents(self, tmp_path):
        path = tmp_path / "text.txt"
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n \n".join(self.WANTED).encode() + b"\n\n")
        assert tuple(read_texts(path)) == self.WANTED
        texts = read_texts(str(path))
        assert (list(texts), list(texts)) == (list(self.WANTED),) * 2
        path.write_text(" \n")
        with pytest.raises(TextError, match=r"text\.txt: there is no text in it"):
            list(read_texts(path))
        path.write_bytes(b"good\n\xff\xfe\n")
        with pytest.raises(TextError, match="not UTF-8"):
            list(read_texts(path))

    def test_json_lines(self, tmp_path):
        path = tmp_path / "text.jsonl"
        path.write_text("\n\n".join(json.dumps({"id": 1, "body": text}) for text in self.WANTED), encoding="utf-8")
        assert tuple(read_texts(path, field="body")) == self.WANTED
        with pytest.raises(TextError, match="line 1: no field 'text' but id, body"):
            list(read_texts(path))
        with pytest.raises(TextError, match="line 1: 'id' is a int"):
            list(read_texts(path, field="id"))
        path.write_text('{"text": "a"}\n{"text": \n')
        with pytest.raises(TextError, match=r"line 2: not JSON"):
            list(read_texts(path))
        path.write_text('["text"]\n')
        with pytest.raises(TextError, match="but a list"):
            list(read_texts(path))

    def test_data_sets(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        made = datasets.Dataset.from_dict({"body": list(self.WANTED), "n": [1, 2, 3]})
        for name, write in {
            "a.parquet": made.to_parquet, "a.csv": made.to_csv, "folder/train.parquet": made.to_parquet,
            "folder/test.parquet": made.select([1]).to_parquet, "lines/data.jsonl": made.to_json,
        }.items():  # fmt: skip
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(str(tmp_path / name))
        made.save_to_disk(tmp_path / "saved")
        datasets.DatasetDict({"dev": made}).save_to_disk(tmp_path / "splits")
        for name in ("a.parquet", "a.csv", "folder", "lines", "saved"):
            assert tuple(read_texts(tmp_path / name, field="body")) == self.WANTED, name
        assert list(read_texts(tmp_path / "folder", field="body", split="test")) == [self.WANTED[1]]
        assert tuple(read_texts(tmp_path / "splits", field="body", split="dev")) == self.WANTED
        with pytest.raises(TextError, match=r"row 1: no field 'text' but body, n"):
            list(read_texts(tmp_path / "folder"))
        for name, split in (("folder", "validation"), ("splits", "train")):
            with pytest.raises(TextError, match=f"split {split}"):
                list(read_texts(tmp_path / name, field="body", split=split))
        (tmp_path / "broken.json").write_text('{"text": "a"}\n{"text": ')
        with pytest.raises(TextError, match=r"broken\.json .* cannot be read"):
            list(read_texts(tmp_path / "broken.json"))
        (tmp_path / "empty").mkdir()
        for name in (tmp_path / "empty", "no-such/data-set"):  # tests are offline: no name is found
            with pytest.raises(TextError, match="cannot be read"):
                list(read_texts(name))

    @pytest.mark.parametrize("name", ["./none", "/none/none", "none.txt", "a/none.jsonl", "~/none", "a/b/c"])
    def test_missing_files_are_not_taken_for_data_sets(self, name):
        with pytest.raises(TextError, match="no such file or folder"):
            read_texts(name)

    def test_no_name_is_no_text(self):
        with pytest.raises(SettingError, match="no name"):
            read_texts("")

    def test_a_file_is_collected_from_as_its_documents_are(self, tmp_path, tiny_llama, tiny_tokenizer):
        lines = [text.replace("\n", " ") for text in DOCUMENTS]
        (tmp_path / "text.txt").write_text("\n".join(lines))
        first = collect_statistics(tiny_llama, tiny_tokenizer, tmp_path / "text.txt", (1,), n_tokens=640)
        second = collect_statistics(tiny_llama, tiny_tokenizer, lines, (1,), n_tokens=640)
        assert torch.equal(first.moment(1), second.moment(1))
        assert first.about == second.about
