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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from corsa_plugins.corsa.kept import Kept, keep_answers, make_kept
from corsa_plugins.data.preferences import FilledRequests, fill_target_old, to_preference_rows
from corsa_plugins.data.reading import read_probes, read_requests, write_requests
from corsa_plugins.data.requests import EditRequest, input_key
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.hub import METHOD, SETTINGS, Made, write_card
from corsa_plugins.methods.effect import write_report
from corsa_plugins.methods.history import HISTORY
from corsa_plugins.model.bases import base_of
from corsa_plugins.model.borrowing import attribute
from corsa_plugins.model.gguf import find_gguf, load_gguf_model, load_gguf_tokenizer
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.loading import load_whole, put_adapters
from corsa_plugins.model.stored import check_stored, reading
from corsa_plugins.outputs import disk_errors
from corsa_plugins.paths import user_path
from trl_ext.arguments import RequestArguments, parse_arguments
from trl_ext.checkpoints import save_adapter
from trl_ext.config import CoRSAConfig
from trl_ext.effect import learned
from trl_ext.history import HistoryCallback
from trl_ext.reporting import check_reporting
from trl_ext.sharding import first_process_reads, is_sharded, shard, sharding_asked_for
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
    model, base = _load_model(request_args.adapter, training_args, model_args)
    filled = _fill(model, tokenizer, requests, request_args, training_args.device)
    if not filled.requests:
        raise CorsaError(
            f"{request_args.requests}: the model already answers every request as wanted; nothing to train."
        )
    output = Path(training_args.output_dir)
    followed = None
    if eval_requests is not None:
        followed = _fill(model, tokenizer, eval_requests, request_args, training_args.device).requests
        if not followed:
            raise SettingError(f"{request_args.eval_requests}: the model already answers every request as wanted.")
    with _refused(training_args):
        trainer = CoRSATrainer(
            kept=_kept(model, tokenizer, filled.requests, request_args, training_args),
            model=model,
            args=training_args,
            train_dataset=_dataset(filled.requests, request_args),
            eval_dataset=_dataset(followed, request_args) if followed else None,
            processing_class=tokenizer,
            peft_config=None if request_args.adapter else get_peft_config(model_args),
            callbacks=_callbacks(filled.requests, tokenizer, request_args, output),
        )
    if training_args.should_save:
        with disk_errors(output, "nothing is trained yet"):
            write_requests(output / "requests.jsonl", filled.requests)
            if filled.already_known:
                write_requests(output / "already_known.jsonl", filled.already_known)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    made = Made(model_args.model_name_or_path)
    about = {METHOD: "corsa", SETTINGS: _settings(trainer, request_args), "model": str(model_args.model_name_or_path)}
    with disk_errors(output, "make room and go on from the newest whole checkpoint, if any"):
        save_adapter(trainer, output, base, **about, adapter=request_args.adapter, **input_key(filled.requests))
        _report(trainer, filled.requests, request_args.conversational, output)
        if training_args.should_save:
            write_card(output, made)
    trainer.accelerator.print(f"Adapter of {len(filled.requests)} requests saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        _push(trainer, output, made)
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
    if Path(training_args.output_dir).exists() and not Path(training_args.output_dir).is_dir():
        raise SettingError(f"output_dir={training_args.output_dir} is a file: name a folder for the adapter.")
    check_reporting(training_args)
    requests = read_requests(request_args.requests)
    return requests, read_requests(request_args.eval_requests) if request_args.eval_requests else None


def _load_tokenizer(
    conversational: bool, training_args: CoRSAConfig, model_args: ModelConfig
) -> PreTrainedTokenizerBase:
    name = model_args.model_name_or_path
    folder = user_path(str(name))
    if folder.is_dir() and find_gguf(folder) is None:
        check_stored(folder, f"model_name_or_path={name}")
    with reading(f"model_name_or_path={name} cannot be loaded", folder=name):
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
) -> tuple[PreTrainedModel | PeftModel, Fingerprint | None]:
    """The model to train, and what its base is known by."""
    what = f"model_name_or_path={model_args.model_name_or_path}"
    sharding = sharding_asked_for(training_args)
    with reading(f"{what} cannot be loaded", folder=model_args.model_name_or_path):
        settings = {
            "revision": model_args.model_revision,
            "trust_remote_code": training_args.trust_remote_code,
            "attn_implementation": model_args.attn_implementation,
            "dtype": model_args.dtype,
            "quantization_config": get_quantization_config(model_args),
        } | (training_args.model_init_kwargs or {})
        training_args.model_init_kwargs = None  # the trainer is given the model itself
        gguf = find_gguf(model_args.model_name_or_path)
        if gguf:
            model: Any = load_gguf_model(gguf, **settings)
        else:
            with first_process_reads(sharding):
                model = load_whole(model_args.model_name_or_path, what, **settings)
    base = base_of(model)
    if sharding is not None:
        shard(model, sharding, training_args.device)
    if adapter is not None:
        model = put_adapters(model, {"default": adapter}, "the model", trainable=True)
    return model, base


@contextmanager
def _refused(training_args: CoRSAConfig) -> Iterator[None]:
    """What TRL, PEFT or transformers refuse before training is about a setting, or a package that one needs. The empty
    folder that they have made for the output goes again."""
    output = Path(training_args.output_dir)
    is_new = not output.exists()
    try:
        yield
    except Exception as error:
        if is_new:
            with suppress(OSError):
                output.rmdir()
        if isinstance(error, CorsaError):
            raise
        logger.debug("the trainer cannot be made", exc_info=True)
        if isinstance(error, ValueError | ImportError | RuntimeError):
            raise SettingError(str(error)) from error
        if training_args.push_to_hub:
            raise SettingError(f"push_to_hub=True, and the Hub cannot be reached or refuses: {error}") from error
        raise


def _fill(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    request_args: RequestArguments,
    device: torch.device,
) -> FilledRequests:
    if not request_args.fill_target_old:
        return FilledRequests(tuple(requests), (), ())
    _place(model, device)
    filled = fill_target_old(
        model,
        tokenizer,
        requests,
        max_new_tokens=request_args.max_answer_tokens,
        whole=request_args.whole_answers,
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


def _kept(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    request_args: RequestArguments,
    training_args: CoRSAConfig,
) -> list[Kept]:
    """The prompts to keep, where any are: those of a file, or made of the requests."""
    if not training_args.keep_weight:
        return []
    _place(model, training_args.device)
    chat = request_args.conversational
    if request_args.keep:
        prompts = [probe.prompt for probe in read_probes(request_args.keep)]
        return keep_answers(model, tokenizer, prompts, chat_template=chat)
    kept = make_kept(
        model, tokenizer, requests, n=request_args.keep_prompts, chat_template=chat, seed=training_args.seed
    )
    logger.info("%d prompts to keep were made, such as %r.", len(kept), kept[0].prompt if kept else "")
    return kept


def _place(model: PreTrainedModel | PeftModel, device: torch.device) -> None:
    if not (
        is_sharded(model)  # which is in its place
        or getattr(model, "is_loaded_in_4bit", False)
        or getattr(model, "is_loaded_in_8bit", False)
    ):
        model.to(device)


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
    """Whether the facts were learned, by the first process, while the others wait or, with shards, do the same."""
    first = trainer.is_world_process_zero()
    if first or trainer.sharding is not None:
        settings: Any = {"chat_template": conversational, "standing": trainer.learned, "kept": trainer.kept_changed()}
        told = learned(trainer.model, trainer.processing_class, requests, **settings)
        if first:
            write_report(told, output)
    trainer.accelerator.wait_for_everyone()


def _settings(trainer: CoRSATrainer, request_args: RequestArguments) -> dict[str, Any]:
    """What the manifest, and by it the card, says of how the adapter was trained."""
    lora = trainer.model.peft_config["default"]
    asked = {name: getattr(request_args, name) for name in ("conversational", "answer_suffix")}
    adapter = {name: getattr(lora, name) for name in ("lora_dropout", "use_rslora", "use_dora")}
    return trainer.args.told() | adapter | asked


def _push(trainer: CoRSATrainer, output: Path, made: Made) -> None:
    """What `Trainer.push_to_hub` does, with our card: it saves again, by which PEFT words another, and uploads."""
    try:
        with attribute(trainer, "create_model_card", lambda **_: write_card(output, made)):
            trainer.push_to_hub()
    except Exception as error:  # of whatever kind: the Hub's client has errors of several libraries
        raise CorsaError(
            f"the adapter is in {output}, but cannot be pushed to the Hub: {error}; to upload it again: corsa push "
            f"{output} {trainer.hub_model_id or 'OWNER/NAME'}"
        ) from error


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
