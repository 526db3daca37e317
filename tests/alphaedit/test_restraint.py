"""RECT, PRUNE and SPHERE, as their papers write them, and what they leave of the sum that weights are otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from corsa_plugins.alphaedit.algorithm import Update
from corsa_plugins.alphaedit.edited_layer import joined_updates
from corsa_plugins.alphaedit.restraint import RestraintSettings, largest_singular_value, principal_directions, restrain
from corsa_plugins.errors import SettingError
from tests.oracles import family as oracle
from tests.support.problems import error

RECT, PRUNE = RestraintSettings("relative_change"), RestraintSettings("singular_values")


def weights(seed: int = 0, d_out: int = 7, d_in: int = 11) -> torch.Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def updates(n: int = 2, size: float = 1.0, d_out: int = 7, d_in: int = 11) -> list[Update]:
    return [Update(size * weights(10 + i, d_out, 3), weights(20 + i, d_in, 3)) for i in range(n)]


def total(settings: RestraintSettings, W0: torch.Tensor, made: list[Update]) -> np.ndarray:
    restrained = restrain(settings, W0, made)
    parts = [part.left.double() @ part.right.double().T for part in restrained.factors]
    return sum([*parts, *restrained.dense], torch.zeros_like(W0)).numpy()


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_rect_keeps_of_each_update_what_changes_most_for_what_is_there(share: float) -> None:
    W0, made = weights(), updates()
    literal = [oracle.kept_by_rect((u.left @ u.right.T).numpy(), W0.numpy(), share) for u in made]
    ours = total(RestraintSettings("relative_change", share=share), W0, made)
    assert error(ours, sum(literal)) <= 1e-12
    assert error(total(RestraintSettings("relative_change", share=share), W0, made[:1]), literal[0]) <= 1e-12


@pytest.mark.parametrize("base", [1.2, np.e, 10.0])
@pytest.mark.parametrize(("d_out", "d_in"), [(7, 11), (11, 7), (4, 5)])
def test_prune_holds_the_singular_values_of_the_sum(base: float, d_out: int, d_in: int) -> None:
    W0, made = 4 * weights(0, d_out, d_in), updates(2, 3.0, d_out, d_in)
    summed = sum(u.left @ u.right.T for u in made).numpy()
    ours = total(RestraintSettings("singular_values", base=base), W0, made)
    assert np.linalg.norm(summed, 2) > np.linalg.norm(W0, 2) > np.linalg.norm(summed, -2)
    assert error(ours, oracle.held_by_prune(summed, W0.numpy(), base)) <= 1e-9
    assert error(ours, summed) > 0.01


def test_prune_lets_small_updates_be_to_the_bit_and_makes_none_larger() -> None:
    W0, made = weights(), updates(2, 1e-3)
    assert restrain(PRUNE, W0, made).factors == made
    W0 = 0.1 * weights()  # with s_0 under 1 / log(1.2) the formula raises what is just over it
    limit = largest_singular_value(W0)
    near = Update(torch.eye(7, 1, dtype=torch.float64) * limit * 1.01, torch.eye(11, 1, dtype=torch.float64))
    assert np.linalg.norm(total(PRUNE, W0, [near]), 2) == pytest.approx(1.01 * limit)


@pytest.mark.parametrize(("d_out", "d_in"), [(7, 11), (11, 7)])
@pytest.mark.parametrize(("energy", "strength"), [(0.3, 0.5), (0.8, 1.0), (0.9, 0.2)])
def test_sphere_weakens_each_update_along_the_principal_directions(
    d_out: int, d_in: int, energy: float, strength: float
) -> None:
    W0, made = weights(0, d_out, d_in), updates(2, 1.0, d_out, d_in)
    rule = RestraintSettings("principal_directions", energy=energy, strength=strength)
    literal = [oracle.weakened_by_sphere((u.left @ u.right.T).numpy(), W0.numpy(), energy, strength) for u in made]
    restrained = restrain(rule, W0, made)
    assert error(total(rule, W0, made), sum(literal)) <= 1e-7
    assert error(total(rule, W0, made[:1]), literal[0]) <= 1e-7, "the batches do not hang on each other"
    assert not restrained.dense
    assert [part.right.shape for part in restrained.factors] == [u.right.shape for u in made]
    U = principal_directions(W0, energy)
    assert error(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64)) <= 1e-7


def test_the_updates_of_one_batch_are_one_update() -> None:
    W0, made = weights(), updates()
    once = oracle.kept_by_rect(sum(u.left @ u.right.T for u in made).numpy(), W0.numpy(), 0.4)
    assert error(total(RECT, W0, [joined_updates(made)]), once) <= 1e-12


@pytest.mark.parametrize("rule", ["relative_change", "singular_values", "principal_directions"])
def test_what_is_read_from_a_file_is_restrained_to_the_same_bits(rule: Any) -> None:
    """Where a weight and its updates lie in memory is nothing that a saved state keeps."""

    def elsewhere(tensor: torch.Tensor, offset: int) -> torch.Tensor:
        memory = torch.empty(tensor.numel() + offset, dtype=torch.float64)[offset:]
        return memory.view(tensor.shape).copy_(tensor)

    for seed in range(10):
        W0, made = weights(seed, 16, 40), updates(2, 6.0, 16, 40)
        first, *others = (
            total(
                RestraintSettings(rule),
                elsewhere(W0, offset),
                [Update(*(elsewhere(part, offset) for part in update)) for update in made],
            )
            for offset in (0, 1, 3)
        )
        assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("changes", [{"rule": "other"}, {"share": 0}, {"share": 1.1}, {"base": 1}, {"energy": 0}])
def test_what_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=rf"^{next(iter(changes))} is"):
        RestraintSettings.from_dict({"rule": "relative_change", **changes})
