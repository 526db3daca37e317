"""Statistics as an object and as a folder; texts; and what other tools have computed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from corsa_plugins.alphaedit.solver.eigenbasis import FileVectors, MomentError
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.foreign import read_moments, read_projectors
from corsa_plugins.alphaedit.statistics.layer import MomentStatistics, StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.alphaedit.statistics.texts import TextError, read_texts
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.testbed import texts_of_testbed
from tests.conftest import DOCUMENTS, llama

HALF = NullSpaceRule("share", 0.5)


@pytest.fixture
def statistics(tiny_llama, tiny_tokenizer) -> KeyStatistics:
    return collect_statistics(tiny_llama, tiny_tokenizer, DOCUMENTS, (0, 1), n_tokens=800, length=32, sample_size=30)


class TestFolder:
    def test_a_folder_gives_back_what_was_saved(self, tmp_path, statistics):
        path = statistics.save(tmp_path / "a" / "stats")
        assert path == tmp_path / "a" / "stats" / "statistics.json"
        loaded = KeyStatistics.load(tmp_path / "a" / "stats")
        assert loaded.layers == (0, 1)
        assert loaded.fingerprint == statistics.fingerprint
        assert loaded.about == statistics.about
        keys = torch.randn(64, 5)
        for layer in loaded.layers:
            assert (loaded.width(layer), loaded.count(layer)) == (64, 800)
            assert torch.equal(loaded.moment(layer), statistics.moment(layer))
            assert torch.equal(loaded.sample(layer), statistics.sample(layer))
            assert torch.equal(loaded.eigenvalues(layer), statistics.eigenvalues(layer))
            one, other = loaded.null_space(layer, HALF), statistics.null_space(layer, HALF)
            assert torch.equal(one.coordinates(keys), other.coordinates(keys))
            assert (one.n_null, one.share) == (32, 0.5)

    def test_eigenvectors_are_computed_once_and_read_in_parts(self, tmp_path, statistics, monkeypatch):
        statistics.save(tmp_path)

        def never(*args, **kwargs):
            raise AssertionError("eigenvectors were computed again")

        monkeypatch.setattr(torch.linalg, "eigh", never)
        space = KeyStatistics.load(tmp_path).null_space(1, HALF)
        assert isinstance(space.basis.vectors, FileVectors)
        with safe_open(tmp_path / "layer_1.eigen.safetensors", framework="pt") as file:
            assert file.get_slice("eigenvectors").get_shape() == [64, 64]
            rows = file.get_tensor("eigenvectors")
        moment = KeyStatistics.load(tmp_path).moment(1)
        assert torch.allclose(rows.mT @ torch.diag(space.eigenvalues) @ rows, moment, atol=1e-10)

    def test_others_replace_what_was_there(self, tmp_path, statistics):
        statistics.save(tmp_path)
        KeyStatistics({1: statistics.by_layer[1]}).save(tmp_path)
        loaded = KeyStatistics.load(tmp_path)
        assert (loaded.layers, loaded.fingerprint) == ((1,), None)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "layer_1.eigen.safetensors", "layer_1.safetensors", "statistics.json",
        ]  # fmt: skip

    @pytest.mark.parametrize("after", range(4))
    def test_half_a_folder_never_looks_whole(self, tmp_path, statistics, monkeypatch, after):
        statistics.save(tmp_path)
        plain, calls = safetensors.torch.save_file, []

        def fails(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            plain(*args, **kwargs)

        monkeypatch.setattr("safetensors.torch.save_file", fails)
        with pytest.raises(KeyboardInterrupt):
            statistics.save(tmp_path)
        with pytest.raises(StatisticsError, match=r"statistics\.json is missing"):
            KeyStatistics.load(tmp_path)
        assert not list(tmp_path.glob(".*"))

    def test_damage_is_noticed(self, tmp_path, statistics):
        statistics.save(tmp_path / "a")
        statistics.save(tmp_path / "b")

        def message(error=StatisticsError) -> str:
            with pytest.raises(error) as caught:
                KeyStatistics.load(tmp_path / "a")
            return str(caught.value)

        good = (tmp_path / "a" / "layer_1.safetensors").read_bytes()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes(good[:-8])
        assert "layer_1.safetensors has" in message()
        assert "cut short" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes((tmp_path / "b" / "layer_1.safetensors").read_bytes())
        assert "do not mix the files of two folders" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes((tmp_path / "a" / "layer_0.safetensors").read_bytes())
        assert "is of other statistics" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes(b"\xff" * len(good))
        assert "is damaged" in message()
        (tmp_path / "a" / "layer_1.safetensors").unlink()
        assert "layer_1.safetensors is missing" in message()
        (tmp_path / "a" / "layer_1.safetensors").write_bytes(good)
        manifest = tmp_path / "a" / "statistics.json"
        content = json.loads(manifest.read_text())
        assert KeyStatistics.load(tmp_path / "a").layers == (0, 1)
        for change, expected in [
            ({"version": 99}, "version 99"),
            ({"layers": 3}, "not what this program writes"),
            ({"fingerprint": {}}, "not the fingerprint"),
            ({"layers": {"1": {**content["layers"]["1"], "width": 32}}}, "says"),
        ]:
            manifest.write_text(json.dumps({**content, **change}))
            assert expected in message()
        manifest.write_text("{")
        assert "statistics.json is damaged" in message()

    def test_what_is_not_there_is_said(self, tmp_path, statistics):
        with pytest.raises(StatisticsError, match="no such folder of statistics"):
            KeyStatistics.load(tmp_path / "nowhere")
        with pytest.raises(StatisticsError, match="no statistics"):
            KeyStatistics.load(tmp_path)
        with pytest.raises(StatisticsError, match="no statistics of layer 3, there are 0, 1"):
            statistics.null_space(3)
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError):
            statistics.save(tmp_path / "file")


class TestCheck:
    def test_the_same_model_in_any_precision_and_edited_is_accepted(self, statistics, tiny_llama):
        with torch.no_grad():
            find_architecture(tiny_llama).ffn(0).down.weight.mul_(3)
        statistics.check(tiny_llama)
        statistics.check(tiny_llama.bfloat16())

    def test_another_model_is_refused_and_both_are_named(self, statistics, tiny_llama):
        other = llama(tiny_llama.config.vocab_size, seed=9)
        other.config._name_or_path = "someone/else"
        with pytest.raises(StatisticsError) as caught:
            statistics.check(other)
        assert f"a model (llama, {statistics.fingerprint.digest})" in str(caught.value)
        assert "someone/else (llama, " in str(caught.value)
        assert "other weights in model.embed_tokens.weight" in str(caught.value)

    def test_without_a_fingerprint_widths_decide(self, tiny_llama):
        KeyStatistics({1: MomentStatistics(torch.eye(64), 100)}).check(tiny_llama)
        with pytest.raises(StatisticsError, match="layer 1 are 32 wide, and 64 in this model"):
            KeyStatistics({1: MomentStatistics(torch.eye(32), 100)}).check(tiny_llama)
        with pytest.raises(StatisticsError, match="layer 7, and this model: layer is 7"):
            KeyStatistics({7: MomentStatistics(torch.eye(64), 100)}).check(tiny_llama)

    def test_broken_moments_are_refused(self):
        with pytest.raises(MomentError, match="second moment of layer 4 holds NaN"):
            MomentStatistics(torch.full((3, 3), float("nan")), 1, name="layer 4")
        with pytest.raises(MomentError, match="not symmetric"):
            MomentStatistics(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 1)
        with pytest.raises(StatisticsError, match="sample of keys is 3 x 5"):
            MomentStatistics(torch.eye(2), 1, torch.zeros(3, 5))


class TestForeign:
    @staticmethod
    def write(path: Path, total, count, **more) -> Path:
        arrays = {"mom2.constructor": "util.runningstats.SecondMoment()", "mom2.mom2": total, "mom2.count": count}
        numpy.savez(path, **{**arrays, "sample_size": 100, **more})
        return path

    def test_second_moments_of_rome_are_means_after_reading(self, tmp_path, statistics, tiny_llama, caplog):
        files = [
            self.write(
                tmp_path / f"model.layers.{layer}.mlp.down_proj_float32_mom2_100000.npz",
                (statistics.moment(layer) * 800).float().numpy(), 800,
            )
            for layer in (0, 1)
        ]  # fmt: skip
        with caplog.at_level(logging.WARNING):
            found = read_moments(tmp_path, tiny_llama)
        assert "do not say which model they were made of" in caplog.text
        assert found.layers == (0, 1)
        for layer in (0, 1):
            assert found.count(layer) == 800
            assert found.sample(layer) is None
            assert torch.allclose(found.moment(layer), statistics.moment(layer), rtol=1e-5, atol=1e-7)
        by_hand = read_moments({1: files[0]})
        assert torch.equal(by_hand.moment(1), found.moment(0))
        found.save(tmp_path / "saved")
        again = KeyStatistics.load(tmp_path / "saved")
        assert (again.fingerprint, again.sample(0)) == (None, None)
        assert again.null_space(0, HALF).n_null == 32

    def test_what_is_no_second_moment_is_refused(self, tmp_path, tiny_llama):
        def message(files, error=StatisticsError) -> str:
            with pytest.raises(error) as caught:
                read_moments(files, tiny_llama)
            return str(caught.value)

        name = "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz"
        assert "no such file" in message(tmp_path / name)
        assert "no .npz file in this folder" in message(tmp_path)
        numpy.savez(tmp_path / name, mean=numpy.eye(2))
        assert "holds mean: no mom2.mom2" in message(tmp_path / name)
        (tmp_path / name).write_bytes(b"PK\x03\x04 nonsense")
        assert "damaged" in message(tmp_path / name)
        assert "of 0 tokens" in message(self.write(tmp_path / name, numpy.eye(64), 0))
        assert "32 wide" in message(self.write(tmp_path / name, numpy.eye(32), 5))
        assert "NaN" in message(self.write(tmp_path / name, numpy.eye(64) * numpy.nan, 5), MomentError)
        assert "pickle" in message(self.write(tmp_path / name, numpy.array([{}], dtype=object), 5))
        second = self.write(tmp_path / "h.1.again.npz", numpy.eye(64), 5)
        assert "are both of layer 1" in message([tmp_path / name, second])
        assert "does not say which layer" in message(self.write(tmp_path / "moment.npz", numpy.eye(64), 5))

    def test_projectors_of_alphaedit_become_null_spaces(self, tmp_path, statistics, tiny_llama):
        spaces = [statistics.null_space(layer, HALF) for layer in (0, 1)]
        identity = torch.eye(64, dtype=torch.float64)
        stack = torch.stack([space.combine(space.coordinates(identity)[: space.n_null]) for space in spaces]).float()
        path = tmp_path / "null_space_project.pt"
        torch.save(stack, path)
        found = read_projectors(path, (0, 1), tiny_llama)
        for layer, space in zip((0, 1), spaces, strict=True):
            assert isinstance(found[layer], NullSpace)
            assert found[layer].n_null == 32
            keys = torch.randn(64, 4)
            one, other = (s.combine(s.coordinates(keys)[: s.n_null]) for s in (space, found[layer]))
            assert torch.allclose(one, other, atol=1e-4)
        with pytest.raises(SettingError, match="holds 2 projectors"):
            read_projectors(path, (0,))
        torch.save(stack[0, :32, :32], path)
        with pytest.raises(StatisticsError, match="32 wide, and its keys are 64"):
            read_projectors(path, (0,), tiny_llama)
        torch.save({"P": stack}, path)
        with pytest.raises(StatisticsError, match="holds no projectors"):
            read_projectors(path, (0,))
        path.write_bytes(b"nothing")
        with pytest.raises(StatisticsError, match="cannot be read"):
            read_projectors(path, (0,))
        with pytest.raises(StatisticsError, match="no such file"):
            read_projectors(tmp_path / "none.pt", (0,))


class TestTexts:
    WANTED = ("First: ünï.", "Second, with  spaces ", "{third}")

    def test_lines_are_documents(self, tmp_path):
        path = tmp_path / "text.txt"
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n \n".join(self.WANTED).encode() + b"\n\n")
        assert tuple(read_texts(path)) == self.WANTED
        texts = read_texts(str(path))
        assert (list(texts), list(texts)) == (list(self.WANTED),) * 2
        path.write_text("")
        assert list(read_texts(path)) == []
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
        one = collect_statistics(tiny_llama, tiny_tokenizer, tmp_path / "text.txt", (1,), n_tokens=640)
        other = collect_statistics(tiny_llama, tiny_tokenizer, lines, (1,), n_tokens=640)
        assert torch.equal(one.moment(1), other.moment(1))
        assert one.about == other.about


def test_the_testbed_has_texts_of_its_own_and_a_null_space():
    from corsa_plugins.testbed import load_testbed

    bed = load_testbed()
    texts = texts_of_testbed(bed, 700)
    assert texts == texts_of_testbed(bed, 700)
    assert texts != texts_of_testbed(bed, 700, seed=2)
    names = [person.name for person in bed.world.people]
    assert all(any(name in text for name in names) for text in texts[:50])
    found = collect_statistics(bed.model, bed.tokenizer, texts, (0,), n_tokens=10_240, length=128, batch_size=32)
    space = found.null_space(0, NullSpaceRule("share", 0.7))
    # What 70 % of the eigenvectors let through of the model's own keys is little: that is what makes editing safe.
    assert space.n_null == 717
    assert space.energy < 0.05
    found.check(AutoModelForCausalLM.from_pretrained(bed.path, dtype=torch.bfloat16))
    assert isinstance(bed.model, LlamaForCausalLM)
