"""Which flag a server needs for a rank, and what is said where no flag will do."""

from __future__ import annotations

import pytest

from corsa_plugins.adapters.servers import VLLM_RANKS, check_rank, vllm_rank
from corsa_plugins.errors import SettingError


def test_the_smallest_flag_that_is_large_enough() -> None:
    for rank in range(1, 513):
        flag = vllm_rank(rank)
        assert flag in VLLM_RANKS
        assert flag is not None
        assert flag >= rank
        assert all(other < rank for other in VLLM_RANKS if other < flag)
    assert vllm_rank(513) is None


def test_what_is_too_large_is_refused_with_the_flag() -> None:
    check_rank(16, 16, "", "")
    with pytest.raises(SettingError, match=r"rank 100 \(why\).*at most 16.*--max-lora-rank 128; --max-rank 100.*ways"):
        check_rank(100, 16, "why", "ways")
    with pytest.raises(SettingError, match=r"loads none above 512; PEFT and llama\.cpp have no limit"):
        check_rank(600, 512, "why", "ways")
    with pytest.raises(SettingError, match="at least 1"):
        check_rank(1, 0, "why", "ways")
