"""Which pairs are learned, and that they alone are taken out of the gradient."""

from __future__ import annotations

from math import log

import pytest
import torch

from corsa_plugins.corsa import CorsaSettings, LearnedLevel, dpo_loss, sft_loss, token_weights
from corsa_plugins.corsa.objective import sequence_log_probs

# Three pairs: learned; likely, but not by enough against the old answer; unlikely.
NEW, OLD = [log(0.95), log(0.95), log(0.5)], [-9.0, -1.0, -9.0]


def log_probs(paired: bool = True) -> torch.Tensor:
    """Each completion is two tokens of half the log-probability, with a position off it before them."""
    rows = torch.tensor(NEW + OLD if paired else NEW, dtype=torch.float64)
    return torch.stack([torch.zeros_like(rows), rows / 2, rows / 2], dim=1)


@pytest.mark.parametrize(
    ("level", "paired", "expected"),
    [
        (LearnedLevel(0.9), True, [True, True, False]),
        (LearnedLevel(0.9, 5.0), True, [True, False, False]),
        (LearnedLevel(0.9, 5.0), False, [True, True, False]),  # no old answer, no margin
        (LearnedLevel(0.5), True, [True, True, True]),  # reached is reached
        (LearnedLevel(0.96), True, [False, False, False]),
    ],
)
def test_a_fact_is_learned_by_its_probability_and_its_margin(
    level: LearnedLevel, paired: bool, expected: list[bool]
) -> None:
    assert level.reached(log_probs(paired), paired).tolist() == expected


def test_learned_pairs_weigh_nothing_and_the_others_what_they_did() -> None:
    values, mask = log_probs(), (log_probs() != 0).double()
    reference = sequence_log_probs(values - 1.0)

    def weights(still: bool) -> tuple[torch.Tensor, torch.Tensor]:
        level = LearnedLevel(0.9, 5.0)
        learned = level.reached(values, True)

        def seen(x: torch.Tensor) -> torch.Tensor:
            return level.still(x, learned) if still else x

        got = token_weights(values, lambda x: sft_loss(seen(x), mask), lambda x: dpo_loss(seen(x), *reference))
        assert got.dpo is not None
        assert float(got.sft_loss) == pytest.approx(float(sft_loss(values, mask)))  # the losses are what they are
        return got.sft, got.dpo

    for with_it, without in zip(weights(True), weights(False), strict=True):
        learned = torch.tensor([True, False, False] * 2)
        assert without[0].any()
        assert not with_it[learned].any()
        assert torch.equal(with_it[~learned], without[~learned])


def test_the_papers_level_is_never_reached() -> None:
    assert CorsaSettings().level is None
    assert CorsaSettings(learned_at=0.9, learned_margin=2.0).level == LearnedLevel(0.9, 2.0)
