"""Which ranks of an adapter a server takes.

vLLM 0.33.0 (``vllm/config/lora.py``, ``vllm/lora/peft_helper.py``): the largest rank that it makes room for is one of a
few numbers, 16 if nothing is said, and no adapter of a larger one is loaded. PEFT and llama.cpp have no limit.
"""

from __future__ import annotations

from corsa_plugins.errors import SettingError

__all__ = ["VLLM_DEFAULT", "VLLM_RANKS", "check_rank", "vllm_rank"]

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be."""

VLLM_DEFAULT = 16


def vllm_rank(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` with which vLLM loads an adapter of ``rank``; ``None``: it loads none of it."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def check_rank(rank: int, limit: int, why: str, ways: str) -> None:
    """Refuse an adapter that is larger than it may be.

    Args:
        rank: Of the adapter.
        limit: The most it may be.
        why: Where the rank comes from, in words.
        ways: What can be done about it beside a higher limit.

    Raises:
        SettingError: It is larger; the message says which flag a server needs for it.
    """
    if limit < 1:
        raise SettingError(f"the largest rank is {limit}: it must be at least 1")
    if rank <= limit:
        return
    flag = vllm_rank(rank)
    server = (
        f"vLLM loads it with --max-lora-rank {flag}"
        if flag
        else f"vLLM loads none above {VLLM_RANKS[-1]}; PEFT and llama.cpp have no limit"
    )
    raise SettingError(
        f"the adapter would have rank {rank} ({why}), and at most {limit} is allowed: {server}; --max-rank {rank} "
        f"writes it all the same; {ways}"
    )
