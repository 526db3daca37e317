"""The preserved keys' statistics are found where EasyEdit's users have them, and never those of another model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.solver.nullspace import NullSpaceRule
from corsa_plugins.alphaedit.statistics.layer import StatisticsError
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.model.architecture import find_architecture
from easyedit_ext import apply_alphaedit_plus_to_model, edit_report, reset
from easyedit_ext.alphaedit_plus import known_state
from tests.easyedit_ext.conftest import LAYERS, REQUESTS, changed, small_model, weights

RULE = NullSpaceRule("share", 0.7)


@pytest.fixture
def edit(tiny_tokenizer: PreTrainedTokenizerFast, alphaedit_hparams: Callable[..., Any]) -> Callable[..., str]:
    """Edit a model; what the report says of the statistics."""

    def apply(model: PreTrainedModel, **fields: Any) -> str:
        apply_alphaedit_plus_to_model(model, tiny_tokenizer, REQUESTS[:1], alphaedit_hparams(model, **fields))
        return str(edit_report(model)[-1].statistics)

    return apply


def easyedits_files(model: PreTrainedModel, ours: str, stats_dir: Path, layers: tuple[int, ...] = LAYERS) -> Path:
    """What EasyEdit's ``layer_stats`` would have left: sums and counts."""
    statistics = KeyStatistics.load(ours)
    folder = stats_dir / "tiny" / "wikipedia_stats"
    folder.mkdir(parents=True)
    for layer in layers:
        name = find_architecture(model).ffn(layer).down.name
        count = statistics.count(layer)
        total = (statistics.moment(layer) * count).numpy()
        content = {"mom2.constructor": "SecondMoment()", "mom2.count": count, "mom2.mom2": total}
        np.savez(folder / f"{name}_float32_mom2_100000.npz", **content)  # type: ignore[arg-type]
    return folder


def test_those_of_this_model_are_found_among_others(
    model: PreTrainedModel,
    edit: Callable[..., str],
    collect: Callable[..., str],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    stranger = small_model(model.config.model_type, len(tiny_tokenizer), seed=5)
    twin = copy.deepcopy(model)
    KeyStatistics.load(collect(stranger)).save(tmp_path / "stats" / "a")
    KeyStatistics.load(collect(model)).save(tmp_path / "stats" / "m" / "b")
    used = edit(model, stats_dir=str(tmp_path / "stats"))
    assert used == f"the statistics in {tmp_path / 'stats' / 'm' / 'b'}"
    edit(twin, stats_dir=collect(twin))  # the folder itself
    assert not changed(model, weights(twin))


def test_statistics_of_another_model_are_refused(
    small: PreTrainedModel,
    edit: Callable[..., str],
    collect: Callable[..., str],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    before = weights(small)
    stranger = small_model("llama", len(tiny_tokenizer), seed=5)
    with pytest.raises(StatisticsError, match="other weights"):
        edit(small, stats_dir=collect(stranger))
    with pytest.raises(StatisticsError, match="no statistics of layer 2"):
        edit(small, stats_dir=collect(small), layers=[1, 2])
    assert not changed(small, before)


def test_easyedits_second_moments_are_used(
    model: PreTrainedModel, edit: Callable[..., str], collect: Callable[..., str], tmp_path: Path
) -> None:
    twin = copy.deepcopy(model)
    model.config._name_or_path = "somewhere/tiny"
    folder = easyedits_files(model, collect(model), tmp_path)
    before = weights(model)
    assert edit(model, stats_dir=str(tmp_path)) == f"EasyEdit's second moments in {folder}"
    edit(twin)
    for name in changed(model, before):
        ours, theirs = model.state_dict()[name] - before[name], twin.state_dict()[name] - before[name]
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    reset(model)
    next(folder.glob("*.0.*")).unlink()
    with pytest.raises(StatisticsError, match="layers 1 and none of 0"):
        edit(model, stats_dir=str(tmp_path))


def test_alphaedits_projector_is_used_without_a_search(
    model: PreTrainedModel,
    edit: Callable[..., str],
    collect: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    statistics = KeyStatistics.load(collect(model))
    projectors = []
    for layer in LAYERS:
        space = statistics.null_space(layer, RULE)
        basis = space.coordinates(torch.eye(space.d, dtype=torch.float64), space.n_null)
        projectors.append((basis.T @ basis).float())
    torch.save(torch.stack(projectors), tmp_path / "P.pt")
    twin, before = copy.deepcopy(model), weights(model)
    with caplog.at_level(logging.WARNING):
        assert "P.pt" in edit(model, stats_dir=str(tmp_path), P_loc=str(tmp_path / "P.pt"))
        edit(model, stats_dir=str(tmp_path), P_loc=str(tmp_path / "P.pt"))
    assert caplog.text.count("there is no search") == 1  # and not again at every edit
    assert "given as a projector" not in caplog.text
    model.load_state_dict(before)
    reset(model)
    edit(model, stats_dir=str(tmp_path), P_loc=str(tmp_path / "P.pt"))
    assert all(layer.added == 0 for layer in edit_report(model)[0].report.layers)
    edit(twin, search=False)
    for name in changed(model, before):
        ours, theirs = model.state_dict()[name] - before[name], twin.state_dict()[name] - before[name]
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    # what is no file of torch is refused by its name, as is a projector of another width, or one of other layers
    (tmp_path / "N.pt").write_bytes(b"no file of torch")
    with pytest.raises(StatisticsError, match=r"N\.pt cannot be read: (?!.*mmap)"):
        edit(model, stats_dir=str(tmp_path), P_loc=str(tmp_path / "N.pt"))
    torch.save(torch.eye(5)[None].expand(2, 5, 5).clone(), tmp_path / "Q.pt")
    for fields in ({"P_loc": str(tmp_path / "Q.pt")}, {"P_loc": str(tmp_path / "P.pt"), "layers": [1]}):
        with pytest.raises(ValueError, match=r"Q\.pt|wide|2 projectors"):
            edit(model, stats_dir=str(tmp_path), **fields)


def test_with_statistics_a_projector_is_not_needed(
    small: PreTrainedModel, edit: Callable[..., str], collect: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "P.pt").write_bytes(b"not read")
    assert edit(small, P_loc=str(tmp_path / "P.pt")) == f"the statistics in {collect(small)}"


def test_without_any_they_are_collected_once(
    small: PreTrainedModel, edit: Callable[..., str], text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"stats_dir": str(tmp_path / "stats"), "mom2_dataset": str(text_file), "mom2_n_tokens": 500}
    twin = copy.deepcopy(small)
    with caplog.at_level(logging.WARNING):
        assert "collected from" in edit(small, P_loc=str(tmp_path / "none.pt"), **fields)
    assert str(text_file) in caplog.text
    assert "none.pt" in caplog.text
    (manifest,) = (tmp_path / "stats").rglob("statistics.json")
    written = manifest.stat().st_mtime_ns
    used = edit(twin, **fields)
    assert used == f"the statistics in {manifest.parent}"
    assert manifest.stat().st_mtime_ns == written
    assert not changed(twin, weights(small))


def test_a_weight_that_changed_elsewhere_has_statistics_of_its_own(
    small: PreTrainedModel, edit: Callable[..., str], text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"stats_dir": str(tmp_path / "stats"), "mom2_dataset": str(text_file), "mom2_n_tokens": 500}
    edit(small, **fields, mom2_length=32, mom2_pack=False)
    (first,) = (tmp_path / "stats").rglob("statistics.json")
    about = KeyStatistics.load(first.parent).about
    assert (about["length"], about["pack"]) == (32, False)
    with torch.no_grad():
        small.get_input_embeddings().weight.mul_(1.5)  # as another method might, between two edits
    edit(small, **fields, mom2_length=32, mom2_pack=False)
    assert "something else has changed this model" in caplog.text
    assert len(known_state(small).batches) == 2  # both are in force
    assert len(list((tmp_path / "stats").rglob("statistics.json"))) == 2


def test_documents_are_limited_too(
    small: PreTrainedModel, edit: Callable[..., str], text_file: Path, tmp_path: Path
) -> None:
    fields = {"mom2_dataset": str(text_file), "mom2_n_samples": 6, "stats_dir": str(tmp_path / "stats")}
    edit(small, **fields)
    (manifest,) = (tmp_path / "stats").rglob("statistics.json")
    assert KeyStatistics.load(manifest.parent).about["n_texts"] == 6


def test_nothing_to_collect_from_says_where_it_looked(
    small: PreTrainedModel, edit: Callable[..., str], text_file: Path, tmp_path: Path
) -> None:
    before = weights(small)
    with pytest.raises(StatisticsError) as caught:
        edit(small, stats_dir=str(tmp_path), P_loc="./P.pt", mom2_dataset=str(tmp_path / "no.txt"))
    for word in (str(tmp_path), "./P.pt", "no.txt", "corsa stats"):
        assert word in str(caught.value)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StatisticsError, match=r"none can be collected.*/file/"):
        edit(small, stats_dir=str(tmp_path / "file"), mom2_dataset=str(text_file))
    assert not changed(small, before)
