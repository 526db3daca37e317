"""What a model writes for a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from corsa_plugins.bench.code.tasks import CodeTask
from corsa_plugins.errors import SettingError
from corsa_plugins.model.asking import check_positions, end_ids
from corsa_plugins.model.batching import base_model
from corsa_plugins.model.sampling import sample_continuations
from corsa_plugins.model.tokenization import encode_prompt

__all__ = ["Sampling", "write_answers"]


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; the defaults are those of CodeUpdateArena.

    Attributes:
        samples: How many for each problem.
        temperature: Of the sampling.
        top_p: Sampled are the likeliest tokens that together have this probability.
        max_new_tokens: Length at most.
        seed: Of everything that is drawn.
        chat_template: Whether prompts go through the chat template.
        batch_size: How many samples are written at once; part of what decides them.

    Raises:
        SettingError: One is out of range.
    """

    samples: int = 5
    temperature: float = 0.8
    top_p: float = 0.7
    max_new_tokens: int = 512
    seed: int = 0
    chat_template: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not self.temperature > 0:
            raise SettingError(f"temperature is {self.temperature}: it must be greater than 0; --top-p 0.01 is greedy")
        if not 0 < self.top_p <= 1:
            raise SettingError(f"top_p is {self.top_p}: it must be greater than 0 and at most 1")


def write_answers(model: Any, tokenizer: Any, task: CodeTask, sampling: Sampling) -> list[str]:
    """Sample answers to one task. They depend on the task and the seed, and on no other task.

    Args:
        model: A causal language model; a ``PeftModel`` writes with its active adapter.
        tokenizer: Its tokenizer.
        task: What is asked.
        sampling: How.

    Returns:
        ``sampling.samples`` texts, each up to where the model ends it.

    Raises:
        TokenizationError: The prompt gives no tokens, or there is no chat template.
        SettingError: Prompt and answer are longer than the model's table of positions.
    """
    ids = encode_prompt(tokenizer, task.prompt, sampling.chat_template)
    check_positions(model, [task.prompt], [len(ids) + sampling.max_new_tokens])
    ends = end_ids(base_model(model), tokenizer)
    answers: list[str] = []
    while len(answers) < sampling.samples:
        count = min(sampling.batch_size, sampling.samples - len(answers))
        rows = sample_continuations(
            model,
            [ids] * count,
            sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=f"{sampling.seed} {task.kind} {task.task_id} {len(answers)}",
            ends=ends,
        )
        answers += [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    return answers
