"""Train a CoRSA adapter from a file of edit requests.

    corsa train --config run.yaml
    python -m trl_ext.train --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 --requests facts.jsonl --output_dir adapter
    accelerate launch --multi_gpu -m trl_ext.train --config run.yaml

The settings are those of :mod:`trl_ext.arguments`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from corsa_plugins.data.preferences import FilledRequests, fill_target_old, to_preference_rows
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.methods.effect import write_report
from corsa_plugins.methods.history import HISTORY
from corsa_plugins.model.gguf import find_gguf, load_gguf_model, load_gguf_tokenizer
from trl_ext.arguments import RequestArguments, parse_arguments
from trl_ext.config import CoRSAConfig
from trl_ext.effect import learned
from trl_ext.history import HistoryCallback
from trl_ext.trainer import CoRSATrainer

__all__ = ["main", "train"]

logger = logging.getLogger(__name__)


def train(request_args: RequestArguments, training_args: CoRSAConfig, model_args: ModelConfig) -> CoRSATrainer:
    """Read the requests, load the model, train, and save the adapter to ``training_args.output_dir``.

    Raises:
        CorsaError: the requests cannot be trained on; the message names the file, line and field.
        ValueError: a setting cannot be right; the message names it.
    """
    requests, eval_requests = _check_and_read(request_args, training_args, model_args)
    tokenizer = _load_tokenizer(request_args.conversational, training_args, model_args)
    model = _load_model(request_args.adapter, training_args, model_args)
    filled = _fill(model, tokenizer, requests, request_args, training_args.device)
    if not filled.requests:
        raise CorsaError(
            f"{request_args.requests}: the model already answers every request as wanted; nothing to train."
        )
    output = Path(training_args.output_dir)
    if training_args.should_save:
        write_requests(output / "requests.jsonl", filled.requests)
        if filled.already_known:
            write_requests(output / "already_known.jsonl", filled.already_known)

    followed = None
    if eval_requests is not None:
        followed = _fill(model, tokenizer, eval_requests, request_args, training_args.device).requests
        if not followed:
            raise SettingError(f"{request_args.eval_requests}: the model already answers every request as wanted.")
    trainer = CoRSATrainer(
        model=model,
        args=training_args,
        train_dataset=_dataset(filled.requests, request_args),
        eval_dataset=_dataset(followed, request_args) if followed else None,
        processing_class=tokenizer,
        peft_config=None if request_args.adapter else get_peft_config(model_args),
        callbacks=_callbacks(filled.requests, tokenizer, request_args, output),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    _report(trainer, filled.requests, request_args.conversational, output)
    trainer.accelerator.print(f"Adapter of {len(filled.requests)} requests saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Entry point of `corsa train` and `python -m trl_ext.train`."""
    train(*parse_arguments(argv, prog))


def _check_and_read(
    request_args: RequestArguments, training_args: CoRSAConfig, model_args: ModelConfig
) -> tuple[list[EditRequest], list[EditRequest] | None]:
    """The requests to train on, and those to follow. Before the model: a typing error should not cost its download."""
    if request_args.requests is None:
        raise SettingError("No edit requests: give `--requests FILE.jsonl`, or `requests:` in the YAML file.")
    if model_args.model_name_or_path is None:
        raise SettingError("No model: give `--model_name_or_path`, or `model_name_or_path:` in the YAML file.")
    if training_args.eval_strategy != "no" and request_args.eval_requests is None:
        raise SettingError(
            f"eval_strategy={training_args.eval_strategy.value!r} needs requests to follow: give `--eval_requests`."
        )
    requests = read_requests(request_args.requests)
    return requests, read_requests(request_args.eval_requests) if request_args.eval_requests else None


def _load_tokenizer(
    conversational: bool, training_args: CoRSAConfig, model_args: ModelConfig
) -> PreTrainedTokenizerBase:
    with _named(f"model_name_or_path={model_args.model_name_or_path}"):
        settings = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
        gguf = find_gguf(model_args.model_name_or_path)
        tokenizer = (
            load_gguf_tokenizer(gguf, **settings)
            if gguf
            else AutoTokenizer.from_pretrained(model_args.model_name_or_path, **settings)
        )
    if conversational and tokenizer.chat_template is None:
        raise SettingError(
            f"conversational=True, but the tokenizer of {model_args.model_name_or_path} has no chat template. Set it "
            "to False for a base model, or name an instruction-tuned one."
        )
    return tokenizer


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
        gguf = find_gguf(model_args.model_name_or_path)
        model = (
            load_gguf_model(gguf, **settings)
            if gguf
            else AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **settings)
        )
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


def _callbacks(
    requests: Sequence[EditRequest],
    tokenizer: PreTrainedTokenizerBase,
    request_args: RequestArguments,
    output: Path,
) -> list[HistoryCallback]:
    if not request_args.history_looks:
        return []
    history = HistoryCallback(
        requests,
        tokenizer,
        looks=request_args.history_looks,
        path=output / HISTORY,
        chat_template=request_args.conversational,
    )
    return [history]


def _report(trainer: CoRSATrainer, requests: Sequence[EditRequest], conversational: bool, output: Path) -> None:
    """Whether the facts were learned, by the first process, while the others wait."""
    if trainer.is_world_process_zero():
        settings: Any = {"chat_template": conversational, "standing": trainer.learned}
        write_report(learned(trainer.model, trainer.processing_class, requests, **settings), output)
    trainer.accelerator.wait_for_everyone()


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
