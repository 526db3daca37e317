"""Values are brought to the norm of the original model's, whatever has been edited since."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corsa_plugins.alphaedit import AlphaEditSettings, EditState
from corsa_plugins.alphaedit.report import verdict
from corsa_plugins.alphaedit.values.anchor import NormAnchorSettings, anchored, reference_norm
from corsa_plugins.alphaedit.values.search import Values
from corsa_plugins.errors import SettingError
from tests.fixtures.alphaedit import LATER, QUICK, REQUESTS, Bench
from tests.oracles import family as oracle

PLAIN = replace(QUICK, layers=(0, 1), search=None, smoothing=None)
ANCHORED = replace(PLAIN, norm_anchor=NormAnchorSettings())


def found(seed: int, n: int = 40) -> tuple[Values, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    h, v0, delta = (torch.randn(8, n, generator=random, dtype=torch.float64) for _ in range(3))
    delta = delta * torch.rand(n, generator=random, dtype=torch.float64) * 4
    rest = torch.zeros(n, dtype=torch.float64)
    return Values(h + delta, h, rest, rest, rest.long(), rest.bool()), v0


@pytest.mark.parametrize("skip_over", [1.2, 2.0, 100.0])
def test_each_value_is_as_long_as_the_reference_or_left_out(skip_over: float) -> None:
    values, v0 = found(0)
    norms = (v0 + values.vectors - values.initial).norm(dim=0)
    norm = reference_norm(norms, 0.05)
    assert norm == pytest.approx(oracle.nas_norm(norms.tolist(), 0.05), rel=1e-12)
    assert norm < reference_norm(norms, 0.0)
    scaled = anchored(values, v0, norm, skip_over)
    each = zip(values.initial.T, v0.T, (values.vectors - values.initial).T, strict=True)
    wanted = np.stack([oracle.nas_target(*(p.numpy() for p in parts), norm, skip_over) for parts in each], axis=1)
    assert torch.allclose(scaled.vectors, torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)
    assert scaled.scale is not None
    left_out = scaled.scale == 0
    assert bool(left_out.any()) == (skip_over < 100)
    assert torch.equal(scaled.vectors[:, left_out], values.initial[:, left_out])
    own = v0 + scaled.vectors - values.initial
    assert torch.allclose(own[:, ~left_out].norm(dim=0), torch.tensor(norm, dtype=torch.float64))


def test_a_value_of_no_length_stays() -> None:
    values, v0 = found(1, n=2)
    v0[:, 0] = (values.initial - values.vectors)[:, 0]
    scaled = anchored(values, v0, 3.0, 2.0)
    assert torch.allclose(scaled.vectors[:, 0], values.vectors[:, 0])


@pytest.mark.parametrize(
    "settings",
    [ANCHORED, replace(ANCHORED, residuals="own"), replace(ANCHORED, values=replace(QUICK.values, at="ffn"))],
    ids=["spread", "own", "ffn"],
)
def test_the_norm_is_of_the_original_model_and_stays(
    gpt2_bench: Bench, settings: AlphaEditSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start, fresh = gpt2_bench.weights(), gpt2_bench.copy().editor(settings)
    fresh.edit(REQUESTS, answers=False)
    layers = (1,) if settings.residuals == "spread" and settings.values.at == "block" else (0, 1)
    anchors = {layer: fresh.state.anchor(layer) for layer in layers}
    assert fresh.state.batches[0].anchors == anchors
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        editor = gpt2_bench.editor(PLAIN)
        editor.edit(LATER, answers=False)
        assert "reference norm" not in caplog.text
        editor.settings = settings
        edited = gpt2_bench.weights()
        looked = editor.values(REQUESTS)
        assert gpt2_bench.holds(edited), "looking changes nothing"
        assert "the mean over 3 value vectors alone" in caplog.text
    report = editor.edit(REQUESTS, answers=False)
    assert editor.state.batches[1].anchors == pytest.approx(anchors, rel=1e-9)
    assert looked.scale is not None
    assert [request.value_scale for request in report.requests] == looked.scale.tolist()
    # the norm goes with the state, whichever edits of it are taken back
    editor.state.save(tmp_path / "state")
    editor.revert("1")
    loaded = EditState.load(tmp_path / "state")
    assert loaded.batches[1].anchors == editor.state.batches[0].anchors
    assert loaded.batches[1].report == report
    editor.edit(LATER[:1], answers=False)
    assert editor.state.batches[1].anchors == editor.state.batches[0].anchors
    editor.revert_all()
    assert gpt2_bench.holds(start)
    given = gpt2_bench.editor(replace(settings, norm_anchor=NormAnchorSettings(norm=2.5)))
    given.edit(REQUESTS[:1], answers=False)
    assert given.state.batches[0].anchors == dict.fromkeys(layers, 2.5)


def test_what_is_left_out_is_said_and_not_edited(gpt2_bench: Bench) -> None:
    start = gpt2_bench.weights()
    editor = gpt2_bench.editor(replace(PLAIN, prior_weight=1.0, norm_anchor=NormAnchorSettings(norm=1e-3)))
    report = editor.edit(REQUESTS, answers=False)
    assert {request.value_scale for request in report.requests} == {0.0}
    assert all("left out: its value vector is longer" in request.verdict for request in report.not_edited)
    assert gpt2_bench.holds(start)
    scaled = replace(report.requests[0], value_scale=0.4, edited=False, residual=1.0, inconsistency=2.0)
    scaled = replace(scaled, batch_conflict=None, subspace_conflict=0.0, value_probability=1.0)
    assert verdict(scaled, 0.5).endswith("its value vector was scaled by 0.40, to the reference norm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": 0}, "norm is 0: it must be a norm above 0, or None"),
        ({"drop": 1}, "drop is 1: it must be a share of at least 0 and less than 1"),
        ({"skip_over": 0.5}, r"skip_over is 0\.5: it must be a number above 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        NormAnchorSettings(**changes)
