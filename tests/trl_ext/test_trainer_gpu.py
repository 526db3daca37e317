"""On CUDA: precision, a 4-bit base, and the size of a real step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.oracles import corsa as oracle
from tests.trl_ext.conftest import flat, lora, preference_rows, trained_adapter
from trl_ext import CoRSAConfig, CoRSATrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is False"),
]


def cuda_config(output: Path, **settings: object) -> CoRSAConfig:
    common = {
        "output_dir": str(output),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
    }
    return CoRSAConfig(**(common | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bf16", "tolerance"),
    [(False, 1e-3), (True, 8e-2)],
    ids=["float32", "bf16"],
)
@pytest.mark.parametrize("one_backward", [True, False], ids=["one-backward", "two-backwards"])
def test_agrees_with_algorithm_1(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    bf16: bool,
    tolerance: float,
    one_backward: bool,
) -> None:
    """The relative distance of the update from the float64 one. bfloat16 keeps 8 bits, which autocast rounds
    activations and their gradients to, twice in a step: 8 % is ten roundings in a row, not one."""
    model = trained_adapter(tiny_llama)
    twin = copy.deepcopy(model).double()
    trainer = CoRSATrainer(
        model,
        args=cuda_config(
            tmp_path,
            bf16=bf16,
            tf32=False,
            optim="sgd",
            learning_rate=0.05,
            max_steps=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            one_backward=one_backward,
        ),
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=tiny_tokenizer,
    )
    rows = [dict(row) for row in trainer.train_dataset]
    start = flat(trainer._parameters).cpu()
    trainer.train()
    phi = [p for p in twin.parameters() if p.requires_grad]
    micro = [rows[i : i + 2] for i in range(0, 8, 2)]
    oracle.train(twin, [micro], phi, torch.optim.SGD(phi, lr=0.05), oracle.Settings())
    moved = flat(phi) - start
    assert (flat(trainer._parameters).cpu() - flat(phi)).norm() < tolerance * moved.norm()


def test_a_four_bit_base(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="a 4-bit base needs bitsandbytes: pip install bitsandbytes")
    tiny_llama.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4"
        ),
        device_map={"": 0},
    )
    trainer = CoRSATrainer(
        model,
        args=cuda_config(tmp_path / "out", bf16=True, learning_rate=1e-2, max_steps=30, per_device_train_batch_size=8),
        train_dataset=Dataset.from_list(preference_rows()),
        processing_class=tiny_tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    assert {p.dtype for p in trainer._parameters} == {torch.float32}
    log = [entry for entry in trainer.state.log_history if "sft_loss" in entry]
    assert log[-1]["sft_loss"] < 0.5 * log[0]["sft_loss"]
    assert log[0]["sam/perturbation_norm"] == pytest.approx(0.05, rel=1e-2)


def test_a_step_of_llama_8b_at_the_papers_batch(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shapes of Llama-3.1-8B with random weights: rank 32, batch 4 x 4, gradient checkpointing, bfloat16."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * 2**30:
        pytest.skip(f"needs 40 GiB of GPU memory, {free / 2**30:.0f} are free")
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    trainer = CoRSATrainer(
        model,
        args=cuda_config(
            tmp_path,
            bf16=True,
            gradient_checkpointing=True,
            max_steps=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
        ),
        train_dataset=Dataset.from_list(preference_rows() * 2),
        processing_class=tiny_tokenizer,
    )
    torch.cuda.reset_peak_memory_stats()
    start = flat(p for p in trainer._parameters if p.shape[0] != 32)  # the B matrices, zero before the step
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30
    with capsys.disabled():
        length = max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in trainer.train_dataset)
        print(f"\nLlama-3.1-8B shapes, 16 pairs of up to {length} tokens: peak {peak:.1f} GiB")  # noqa: T201
    assert not torch.equal(start, flat(p for p in trainer._parameters if p.shape[0] != 32))
