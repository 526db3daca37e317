"""Whatever is raised, and whenever Ctrl-C is pressed: weights and state are whole."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from corsa_plugins.alphaedit import EditError, algorithm, answers, batch, editor, reader, restraint
from corsa_plugins.alphaedit.transaction import EditedWeights
from tests.fixtures.alphaedit import QUICK, REQUESTS, SETTINGS, Bench

STAGES: list[tuple[Any, str]] = [
    (reader, "generate_contexts"),
    (answers, "score_targets"),
    (answers, "generate_answers"),
    (reader, "find_values"),
    (reader, "request_keys"),
    (reader, "request_outputs"),
    (algorithm, "prior_weights"),
    (algorithm, "solve"),
    (algorithm, "select_smoothing"),
    (batch, "verdict"),
    (batch, "EditBatch"),
    (restraint, "write_weight"),
]


@pytest.mark.parametrize(("module", "name"), STAGES, ids=[f"{module.__name__}.{name}" for module, name in STAGES])
def test_a_fault_at_any_stage_leaves_everything_as_it_was(
    llama_bench: Bench, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """Each stage fails at its first call, and is interrupted at its last one."""
    subject = llama_bench.editor(QUICK)
    last = _calls(llama_bench, module, name)
    if name != "generate_contexts":
        subject.edit(REQUESTS[:1], answers=False)
    before, known = llama_bench.weights(), subject.state
    for fail_at, error in ((1, RuntimeError), (last, KeyboardInterrupt)):
        calls = 0
        original = getattr(module, name)

        def fail(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:  # noqa: B023
                raise error("injected")  # noqa: B023
            return original(*args, **kwargs)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(error, match="injected"):
                subject.edit(REQUESTS[1:])
        assert subject.state is known
        assert llama_bench.holds(before)
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in llama_bench.model.modules())
    subject.edit(REQUESTS[1:], answers=False)


def _calls(bench: Bench, module: Any, name: str) -> int:
    """How often an edit of the last two requests calls a stage."""
    subject = bench.copy().editor(QUICK)
    original, calls = getattr(module, name), 0

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, count)
        subject.edit(REQUESTS[1:])
    assert calls
    return calls


def test_ctrl_c_while_weights_are_put_back(llama_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = llama_bench.weights()
    subject = llama_bench.editor()
    original = EditedWeights._put_back
    pressed = []

    def interrupted(self: EditedWeights, weights: Any) -> None:
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        original(self, weights)

    def fail(*args: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(EditedWeights, "_put_back", interrupted)
    monkeypatch.setattr(batch, "verdict", fail)
    # A process in the background may have been started to ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(RuntimeError, match="injected"):
            subject.edit(REQUESTS)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert pressed
    assert llama_bench.holds(before)


class Pressed(EditedWeights):
    """Ctrl-C comes right behind the one assignment that makes an edit."""

    armed = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "state" and self.armed:
            raise KeyboardInterrupt


def test_ctrl_c_after_the_state_is_replaced(llama_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and state are those of the edit then, and go on as any other."""
    before = llama_bench.weights()
    monkeypatch.setattr(editor, "EditedWeights", Pressed)
    subject = llama_bench.editor(QUICK)
    weights: Any = subject._weights
    kept: list[list[str]] = [["1"], ["1", "2"], ["2"], []]
    actions: list[Any] = [
        lambda: subject.edit(REQUESTS[:1], answers=False),
        lambda: subject.edit(REQUESTS[1:], answers=False),
        lambda: subject.revert("1"),
        subject.revert_all,
    ]
    for action, names in zip(actions, kept, strict=True):
        weights.armed = True
        with pytest.raises(KeyboardInterrupt):
            action()
        weights.armed = False
        assert [made.name for made in subject.state.batches] == names
        assert subject.state.in_force(weights.maps) == len(names)
    assert llama_bench.holds(before)


def test_nan_is_named_and_nothing_changed(llama_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = llama_bench.editor()
    original = reader.request_outputs

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        found = original(*args, **kwargs)
        found[0, 1] = float("nan")
        return found

    before = llama_bench.weights()
    monkeypatch.setattr(reader, "request_outputs", broken)
    with pytest.raises(EditError, match=r"layer 0: NaN or infinity in the residuals of case 'berg'"):
        subject.edit(REQUESTS)
    assert llama_bench.holds(before)


@pytest.mark.parametrize(("stage", "what"), [("request_outputs", "outputs"), ("request_keys", "keys")])
def test_nan_after_the_edit_is_an_error_too(
    llama_bench: Bench, monkeypatch: pytest.MonkeyPatch, stage: str, what: str
) -> None:
    """It would be recorded as a key of an edit in force, and spoil every later edit."""
    last, calls, original = _calls(llama_bench, reader, stage), 0, getattr(reader, stage)

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        found = original(*args, **kwargs)
        if calls == last:
            (found if isinstance(found, Tensor) else found[1])[0, 1] = float("inf")
        return found

    subject = llama_bench.editor(QUICK)
    before = llama_bench.weights()
    monkeypatch.setattr(reader, stage, broken)
    with pytest.raises(EditError, match=rf"layer 1: NaN or infinity in the {what} after the edit of case 'spain'"):
        subject.edit(REQUESTS[1:])
    assert llama_bench.holds(before)


@pytest.mark.parametrize("smoothing", [None, SETTINGS.smoothing], ids=["plain", "smoothed"])
def test_an_update_beyond_half_precision_is_an_error(
    llama_bench: Bench, monkeypatch: pytest.MonkeyPatch, smoothing: Any
) -> None:
    """The factors fit float32; their product does not fit the weights."""
    llama_bench.model.half()
    before = llama_bench.weights()
    subject = llama_bench.editor(replace(QUICK, layers=(1,), smoothing=smoothing))
    original = algorithm.solve

    def huge(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return replace(found, coefficients=found.coefficients * 1e7)

    monkeypatch.setattr(algorithm, "solve", huge)
    with pytest.raises(EditError, match=r"layer 1: the edited weight holds NaN or infinity in torch.float16"):
        subject.edit(REQUESTS, answers=False)
    assert not subject.state.batches
    assert llama_bench.holds(before)
