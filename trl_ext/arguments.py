"""The settings of `corsa train`, from the command line or a YAML file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig, TrlParser

from corsa_plugins.errors import SettingError
from corsa_plugins.settings import read_mapping
from trl_ext.checks import check_adapter_settings
from trl_ext.config import CoRSAConfig
from trl_ext.launching import LAUNCH_OPTIONS, configuration_names

__all__ = ["CoRSAModelConfig", "RequestArguments", "check_names", "make_parser", "parse_arguments"]

_ABOUT = """\
Train a CoRSA adapter from a file of edit requests.

    corsa train --config run.yaml
    python -m trl_ext.train --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 --requests facts.jsonl --output_dir adapter
    corsa train --accelerate_config multi_gpu --num_processes 8 --config run.yaml

A setting comes from the command line, else from the YAML file, else from the paper. Every field of `CoRSAConfig` (and
so of `DPOConfig` and `TrainingArguments`) and of TRL's `ModelConfig` is a setting. `output_dir` gets the adapter, the
tokenizer, `requests.jsonl` with the requests that were trained on, `report.json`, which says of each whether it was
learned, and, where the model was asked for its own answers, `already_known.jsonl` with those it did not need; with
`history_looks` also `history.json`, the log-probabilities of new and old answers over the training.
"""

_EPILOG = """\
examples:
  The paper's settings on a model of the hub:
    corsa train --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 --conversational \\
        --requests facts.jsonl --fill_target_old --num_train_epochs 10 --output_dir adapter
  A second update on the same adapter:
    corsa train --config run.yaml --adapter adapter --requests more_facts.jsonl --output_dir adapter-2
  What it did:
    corsa evaluate --model Qwen/Qwen3-4B-Instruct-2507 --adapter adapter --requests facts.jsonl --chat-template

accelerate configurations:
  --accelerate_config NAME trains in the processes of `accelerate launch`. NAME is {names}, or a file. Beside it, on
  the command line, may stand --{options}.

exit codes: 0 done; 2 wrong usage, an unusable file or setting (the message says which); 130 interrupted
"""


@dataclass
class RequestArguments:
    """What to edit.

    Args:
        requests (`str`):
            JSONL file of edit requests: one object a line with `prompt`, `target_new` and, unless `fill_target_old`
            is set, `target_old`.
        eval_requests (`str`, *optional*):
            Requests whose losses, margins and log-probabilities are followed during training (`eval_strategy`).
        adapter (`str`, *optional*):
            Adapter of an earlier update to continue on. The base model stays the reference (`reference`).
        conversational (`bool`, *optional*, defaults to `False`):
            Put prompts and answers through the tokenizer's chat template. For instruction-tuned models.
        answer_suffix (`str`, *optional*, defaults to `""`):
            Text to put behind every answer, for instance `"."`. An end-of-sequence token follows in any case.
        fill_target_old (`bool`, *optional*, defaults to `False`):
            Where a request has no `target_old`, take the model's own current answer; leave out requests that it
            already answers as wanted.
        max_answer_tokens (`int`, *optional*, defaults to `16`):
            Longest answer to take from the model, in tokens.
        whole_answers (`bool`, *optional*, defaults to `False`):
            Take all of such an answer, up to `max_answer_tokens`, and not its first sentence. For code.
        history_looks (`int`, *optional*, defaults to `0`):
            About how often to take the log-probabilities of the new and the old answers during training, on the edit
            prompts and on the `validation_prompts` of the requests, of at most 32 of them. They go to `history.json`
            and to the trainer's log history. Changes nothing about the training; `0` leaves it out.
        keep (`str`, *optional*):
            JSONL file of prompts whose answers are to stay as they are, with `keep_weight`. By default they are made:
            the forms of the requests about other subjects, which the model writes itself, and text of its own.
        keep_prompts (`int`, *optional*, defaults to `64`):
            About how many such prompts are made.
    """

    requests: str | None = field(default=None, metadata={"help": "JSONL file of edit requests. Required."})
    eval_requests: str | None = field(
        default=None, metadata={"help": "Requests to follow during training, with `eval_strategy`."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Adapter of an earlier update to continue on."})
    conversational: bool = field(
        default=False, metadata={"help": "Put prompts and answers through the tokenizer's chat template."}
    )
    answer_suffix: str = field(default="", metadata={"help": "Text to put behind every answer, for instance '.'."})
    fill_target_old: bool = field(
        default=False, metadata={"help": "Fill missing `target_old` with the model's own current answer."}
    )
    max_answer_tokens: int = field(
        default=16, metadata={"help": "Longest answer to take from the model, in tokens, with `fill_target_old`."}
    )
    whole_answers: bool = field(
        default=False, metadata={"help": "With `fill_target_old`, take all of an answer, not its first sentence."}
    )
    history_looks: int = field(
        default=0,
        metadata={"help": "About how often to follow the log-probabilities of new and old answers, in history.json."},
    )
    keep: str | None = field(
        default=None, metadata={"help": "JSONL file of prompts to keep, with `keep_weight`; by default they are made."}
    )
    keep_prompts: int = field(default=64, metadata={"help": "About how many prompts to keep are made."})

    def __post_init__(self) -> None:
        if self.keep_prompts < 2:
            raise SettingError(f"keep_prompts is {self.keep_prompts}: it must be at least 2; keep_weight 0 keeps none.")
        if self.history_looks < 0:
            raise SettingError(f"history_looks is {self.history_looks}: it must be a whole number, 0 for no history.")


@dataclass
class CoRSAModelConfig(ModelConfig):
    """TRL's `ModelConfig` with the paper's adapter: rank 32, alpha 64, no dropout, every linear layer but the head."""

    use_peft: bool = field(default=True, metadata={"help": "CoRSA trains an adapter: must stay True."})
    lora_r: int = field(default=32, metadata={"help": "LoRA rank. The paper uses 32 for facts and 128 for code."})
    lora_alpha: int = field(default=64, metadata={"help": "LoRA alpha. The paper uses 64 for facts and 256 for code."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "LoRA target modules; 'all-linear' is every linear layer and expert, no router and no head."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapter_settings(self)
        if not self.use_peft:
            raise SettingError("use_peft=False: CoRSA trains a LoRA adapter, never the base weights. Leave it out.")


def make_parser(prog: str | None = None) -> TrlParser:
    """The parser of `corsa train`, which also reads ``--config file.yaml``."""
    return TrlParser(
        (RequestArguments, CoRSAConfig, CoRSAModelConfig),
        prog=prog,
        usage=f"{prog or 'python -m trl_ext.train'} [--config FILE.yaml] [--SETTING VALUE ...]",
        description=_ABOUT,
        epilog=_EPILOG.format(names=", ".join(configuration_names()), options=", --".join(LAUNCH_OPTIONS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[RequestArguments, CoRSAConfig, CoRSAModelConfig]:
    """The settings that a command line gives, by default this process's.

    Raises:
        SettingError: An unknown setting, or one out of range.
    """
    parser = make_parser(prog)
    arguments = sys.argv[1:] if argv is None else list(argv)
    _check_file(arguments)
    try:
        request_args, training_args, model_args = parser.parse_args_and_config(arguments)
    except ValueError as error:
        hint = " Here that is --use_cpu, or use_cpu: true in the YAML file." if "use_cpu" in str(error) else ""
        raise SettingError(f"{error}{hint}") from error
    return request_args, training_args, model_args


def check_names(argv: Sequence[str], prog: str | None = None) -> None:
    """See that a command line names settings that there are, without making any: those of several processes can be made
    in them alone.

    Raises:
        SettingError: An unknown setting, or a YAML file that is none.
    """
    _check_file(argv)
    parser = make_parser(prog)
    parser.add_argument("--config")
    _, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise SettingError(
            f"{' '.join(unknown)}: no such setting; {prog or 'python -m trl_ext.train'} --help lists them"
        )


def _check_file(arguments: Sequence[str]) -> None:
    """That the YAML file is one, before TRL reads it.

    Raises:
        SettingError: It cannot be read, or is no mapping of names to values.
    """
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--config" and (equals or index + 1 < len(arguments)):
            path = value if equals else arguments[index + 1]
            read_mapping(Path(path), f"--config {path}")
