"""Several adapters on one model, with their names and requests."""

from __future__ import annotations

import copy

import pytest

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.bench.routing.adapters import adapter_names, load_adapters, read_adapter_requests
from corsa_plugins.data.reading import write_requests
from corsa_plugins.errors import SettingError
from corsa_plugins.model.borrowing import active_adapter
from corsa_plugins.model.loading import LoadingError
from tests.support.routing import CAPITALS, PARTS, PEOPLE, alone, assert_same


def test_adapters_are_loaded_side_by_side(adapters, tiny_llama, tiny_tokenizer, tmp_path):
    adapters.save_pretrained(tmp_path, selected_adapters=["capitals", "people"])
    base = copy.deepcopy(adapters).unload()
    loaded, names = load_adapters(base, [tmp_path / "capitals", tmp_path / "people"])
    assert names == ["1", "2"]
    assert loaded.active_adapters == ["1"]
    for name, own in zip(names, ("capitals", "people"), strict=True):
        with active_adapter(loaded, name):
            found = evaluate(loaded, tiny_tokenizer, [*CAPITALS, *PEOPLE], max_new_tokens=4, progress=False).records
        for record, expected in zip(found, alone(adapters, tiny_tokenizer, own), strict=True):
            assert_same(record.edit, expected.edit)
    with pytest.raises(LoadingError, match="none cannot be put on the model"):
        load_adapters(tiny_llama, [tmp_path / "none"])
    with pytest.raises(SettingError, match="no adapters"):
        load_adapters(tiny_llama, [])


def test_names_are_as_long_as_they_must_be():
    assert adapter_names(["runs/a/", "runs/b"]) == ["a", "b"]
    assert adapter_names(["one/last", "two/last", "two/other"]) == ["one/last", "two/last", "two/other"]
    with pytest.raises(SettingError, match="name each adapter once"):
        adapter_names(["runs/a", "runs/b", "runs/a"])


def test_the_requests_of_an_adapter_are_beside_it_or_given(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(SettingError, match=r"a, .*b: no requests\.jsonl beside the adapter"):
        read_adapter_requests(folders)
    for folder, part in zip(folders, PARTS, strict=True):
        write_requests(folder / "requests.jsonl", part)
    assert read_adapter_requests(folders) == PARTS
    files = [folder / "requests.jsonl" for folder in folders]
    assert read_adapter_requests(["hub/one", "hub/two"], files) == PARTS
    with pytest.raises(SettingError, match="1 files of requests for 2 adapters"):
        read_adapter_requests(folders, files[:1])
