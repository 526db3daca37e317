"""Train a CoRSA adapter from a file of edit requests.

    corsa train --config run.yaml
    python -m trl_ext.train --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 --requests facts.jsonl --output_dir adapter
    accelerate launch --multi_gpu -m trl_ext.train --config run.yaml

A setting comes from the command line, else from the YAML file, else from the paper. Every field of `CoRSAConfig` (and
so of `DPOConfig` and `TrainingArguments`) and of TRL's `ModelConfig` is a setting. `output_dir` gets the adapter, the
tokenizer, `requests.jsonl` with the requests that were trained on and, where the model was asked for its own answers,
`already_known.jsonl` with those it did not need; with `history_looks` also `history.json`, the log-probabilities of new
and old answers over the training.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from corsa_plugins.data.preferences import FilledRequests, fill_target_old, to_preference_rows
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.methods.history import HISTORY
from trl_ext.config import CoRSAConfig
from trl_ext.history import HistoryCallback
from trl_ext.trainer import CoRSATrainer

__all__ = ["RequestArguments", "main", "make_parser", "train"]

logger = logging.getLogger(__name__)

_EPILOG = """\
examples:
  The paper's settings on a model of the hub:
    corsa train --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 --conversational \\
        --requests facts.jsonl --fill_target_old --num_train_epochs 10 --output_dir adapter
  A second update on the same adapter:
    corsa train --config run.yaml --adapter adapter --requests more_facts.jsonl --output_dir adapter-2
  What it did:
    corsa evaluate --model Qwen/Qwen3-4B-Instruct-2507 --adapter adapter --requests facts.jsonl --chat-template

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
        history_looks (`int`, *optional*, defaults to `0`):
            About how often to take the log-probabilities of the new and the old answers during training, on the edit
            prompts and on the `validation_prompts` of the requests, of at most 32 of them. They go to `history.json`
            and to the trainer's log history. Changes nothing about the training; `0` leaves it out.
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
    history_looks: int = field(
        default=0,
        metadata={"help": "About how often to follow the log-probabilities of new and old answers, in history.json."},
    )

    def __post_init__(self) -> None:
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
        metadata={"help": "LoRA target modules; 'all-linear' is every linear layer but the head."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_peft:
            raise SettingError("use_peft=False: CoRSA trains a LoRA adapter, never the base weights. Leave it out.")


def make_parser(prog: str | None = None) -> TrlParser:
    """The parser of `corsa train`, which also reads ``--config file.yaml``."""
    return TrlParser(
        (RequestArguments, CoRSAConfig, CoRSAModelConfig),
        prog=prog,
        usage=f"{prog or 'python -m trl_ext.train'} [--config FILE.yaml] [--SETTING VALUE ...]",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def train(request_args: RequestArguments, training_args: CoRSAConfig, model_args: ModelConfig) -> CoRSATrainer:
    """Read the requests, load the model, train, and save the adapter to ``training_args.output_dir``.

    Raises:
        CorsaError: the requests cannot be trained on; the message names the file, line and field.
        ValueError: a setting cannot be right; the message names it.
    """
    if request_args.requests is None:
        raise SettingError("No edit requests: give `--requests FILE.jsonl`, or `requests:` in the YAML file.")
    if model_args.model_name_or_path is None:
        raise SettingError("No model: give `--model_name_or_path`, or `model_name_or_path:` in the YAML file.")
    if training_args.eval_strategy != "no" and request_args.eval_requests is None:
        raise SettingError(
            f"eval_strategy={training_args.eval_strategy.value!r} needs requests to follow: give `--eval_requests`."
        )
    # Both files before the model: a typing error should not cost the minutes of a download.
    requests = read_requests(request_args.requests)
    eval_requests = read_requests(request_args.eval_requests) if request_args.eval_requests else None

    with _named(f"model_name_or_path={model_args.model_name_or_path}"):
        tokenizer = AutoTokenizer.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
    if request_args.conversational and tokenizer.chat_template is None:
        raise SettingError(
            f"conversational=True, but the tokenizer of {model_args.model_name_or_path} has no chat template. Set it "
            "to False for a base model, or name an instruction-tuned one."
        )
    model = _load_model(request_args.adapter, training_args, model_args)

    filled = _fill(model, tokenizer, requests, request_args, training_args.device)
    if not filled.requests:
        raise CorsaError(
            f"{request_args.requests}: the model already answers every request as wanted; nothing to train."
        )
    output = Path(training_args.output_dir)
    if training_args.should_save:
        output.mkdir(parents=True, exist_ok=True)
        write_requests(output / "requests.jsonl", filled.requests)
        if filled.already_known:
            write_requests(output / "already_known.jsonl", filled.already_known)

    evaluated = None
    if eval_requests is not None:
        evaluated = _fill(model, tokenizer, eval_requests, request_args, training_args.device).requests
        if not evaluated:
            raise SettingError(f"{request_args.eval_requests}: the model already answers every request as wanted.")
    history = None
    if request_args.history_looks:
        history = HistoryCallback(
            filled.requests,
            tokenizer,
            looks=request_args.history_looks,
            path=output / HISTORY,
            chat_template=request_args.conversational,
        )
    trainer = CoRSATrainer(
        model=model,
        args=training_args,
        train_dataset=_dataset(filled.requests, request_args),
        eval_dataset=_dataset(evaluated, request_args) if evaluated else None,
        processing_class=tokenizer,
        peft_config=None if request_args.adapter else get_peft_config(model_args),
        callbacks=[history] if history is not None else None,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Adapter of {len(filled.requests)} requests saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Entry point of `corsa train` and `python -m trl_ext.train`."""
    parser = make_parser(prog)
    try:
        parsed = parser.parse_args_and_config(None if argv is None else list(argv))
    except ValueError as error:  # an unknown setting, or one out of range
        hint = " Here that is --use_cpu, or use_cpu: true in the YAML file." if "use_cpu" in str(error) else ""
        raise SettingError(f"{error}{hint}") from error
    train(*parsed)


def _load_model(
    adapter: str | None, training_args: CoRSAConfig, model_args: ModelConfig
) -> PreTrainedModel | PeftModel:
    settings = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "quantization_config": get_quantization_config(model_args),
    } | (training_args.model_init_kwargs or {})
    training_args.model_init_kwargs = None  # the trainer is given the model itself
    with _named(f"model_name_or_path={model_args.model_name_or_path}"):
        model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **settings)
    if adapter is not None:
        with _named(f"adapter={adapter}"):
            model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return model


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """What cannot be loaded is said to be so, by the setting that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SettingError(f"{setting} cannot be loaded: {error}") from error


def _fill(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    request_args: RequestArguments,
    device: torch.device,
) -> FilledRequests:
    if not request_args.fill_target_old:
        return FilledRequests(tuple(requests), (), ())
    if not (getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)):
        model.to(device)
    filled = fill_target_old(
        model,
        tokenizer,
        requests,
        max_new_tokens=request_args.max_answer_tokens,
        chat_template=request_args.conversational,
        progress=True,
    )
    logger.warning(
        "Of %d requests the model already answers %d as wanted; for %d its own answer is the outdated one.",
        len(requests),
        len(filled.already_known),
        len(filled.filled),
    )
    return filled


def _dataset(requests: Sequence[EditRequest], request_args: RequestArguments) -> Dataset:
    rows = to_preference_rows(
        requests, conversational=request_args.conversational, answer_suffix=request_args.answer_suffix
    )
    return Dataset.from_list(rows)


if __name__ == "__main__":
    try:
        main()
    except CorsaError as error:
        sys.exit(f"error: {error}")
