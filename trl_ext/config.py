"""Settings of the CoRSA trainer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_args

from peft import LoraConfig
from trl import DPOConfig

from corsa_plugins.corsa import CorsaSettings
from corsa_plugins.corsa.pcgrad import PCGradForm
from corsa_plugins.model.borrowing import attribute
from corsa_plugins.model.precision import computes_in_bfloat16
from trl_ext.activations import adopt
from trl_ext.checks import REFERENCES, check_checkpointing, check_config
from trl_ext.zero import LAUNCHED, read_zero, variables_hidden

__all__ = ["CoRSAConfig", "paper_lora_config"]

_PAPER = CorsaSettings()

_TOLD = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "gradient_accumulation_steps", "per_device_train_batch_size", "optim", "weight_decay", "max_grad_norm", "bf16",
    "seed", "max_length", "loss_type", "beta", "reference", "keep_batch_size",
)  # fmt: skip


def paper_lora_config() -> LoraConfig:
    """The paper's adapter for factual updates: rank 32, alpha 64, on every linear layer but the head (A.2).

    Of a mixture of experts the trainer makes of it the experts too, and leaves out what routes tokens to them."""
    return LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


@dataclass
class CoRSAConfig(DPOConfig):
    r"""
    Configuration class for the [`CoRSATrainer`].

    Everything a [`~trl.DPOConfig`] takes, and the parameters below. Defaults are those of the paper
    ([CoRSA](https://huggingface.co/papers/2602.03696), sections 4.1 and A.2) for factual updates; for code updates it
    uses LoRA rank 128, alpha 256 and a learning rate of 2e-5.

    Parameters:
        > Parameters that control CoRSA

        dpo_weight (`float`, *optional*, defaults to `1.0`):
            Weight lambda of the DPO loss beside the SFT loss (Eq. 4). `0` leaves the SFT loss alone: the rejected
            completions are then not even run.
        sam_rho (`float`, *optional*, defaults to `0.05`):
            Radius rho of the sharpness-aware perturbation, in the Euclidean norm over all LoRA parameters together
            (Eq. 7). `0` switches sharpness-aware minimisation off and halves the cost of a step.
        sam_eps (`float`, *optional*, defaults to `1e-12`):
            Epsilon added to the norms the algorithm divides by.
        pcgrad (`bool`, *optional*, defaults to `True`):
            Whether to project the SFT and DPO gradients off each other when they conflict. `False` adds them up, in one
            backward pass, and their cosine is not logged.
        pcgrad_form (`str`, *optional*, defaults to `"sequential"`):
            `"sequential"` as in Algorithm 1: the SFT gradient is projected first and the DPO gradient then off the
            projected one. `"simultaneous"` as in the paper's text: each off the other as it was.
        find_learning_rate (`bool`, *optional*, defaults to `False`):
            Whether to try a range of learning rates before training, a few steps each on the first facts and taken back
            bit for bit, and take the smallest that brings half of the best one's gain in place of `learning_rate`.
        learned_at (`float`, *optional*, defaults to `0.0`):
            Probability of its new answer, end token included, at which a fact counts as learned and stops pushing,
            until it falls back. Training ends after an epoch at whose end all facts are learned, and says in the end
            which are not. `0` lets every fact push for all epochs, as in the paper.
        learned_margin (`float`, *optional*, defaults to `0.0`):
            What log p(new) - log p(old) must be as well for a fact to count as learned, in nats.
        sam_start (`float`, *optional*, defaults to `0.0`):
            Share of the training after which sharpness-aware minimisation sets in; before it a step is without, at half
            the cost. `0` is Algorithm 1.
        sam_interval (`int`, *optional*, defaults to `1`):
            From there on, every how many optimizer steps one is sharpness-aware. `1` is Algorithm 1.
        keep_weight (`float`, *optional*, defaults to `0.0`):
            Weight of what holds kept prompts (`kept` of the trainer) to what the model said to them before training:
            the KL divergence, whose gradient is added to every update. `0` holds nothing, as in the paper.
        keep_tolerance (`float`, *optional*, defaults to `0.05`):
            Divergence past which that weight grows in proportion to it, in nats per token.
        keep_batch_size (`int`, *optional*, defaults to `16`):
            Kept prompts per optimizer step, on each process its own.
        reference (`str`, *optional*, defaults to `"base"`):
            Reference of the DPO loss when training continues on an existing adapter: `"base"`, the base model with the
            adapter off, as in the paper, or `"adapter"`, the adapter as it was when training began, as in TRL. A new
            adapter makes no difference between them.
        one_backward (`bool`, *optional*, defaults to `True`):
            Whether to take both gradients from one backward pass where that is exact, which is for plain LoRA adapters
            and losses that treat the tokens of a sequence alike. Elsewhere, and with `False`, two are run.
        share_prompts (`bool`, *optional*, defaults to `True`):
            Whether to run a prompt once for both of its answers where that is exact, which the model is looked at for,
            and takes fewer tokens through it, which is where prompts are longer than answers. The reference and the
            evaluation run it once wherever it is exact.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DPOConfig`]:
    > - `learning_rate`: Defaults to `2e-4` instead of `1e-6`.
    > - `per_device_train_batch_size`: Defaults to `4` instead of `8`.
    > - `gradient_accumulation_steps`: Defaults to `4` instead of `1`.
    > - `precompute_ref_log_probs`: Defaults to `True` instead of `False`: the reference does not change, so its
    >   log-probabilities are computed once, before training.
    > - `router_aux_loss_coef`: Defaults to `0.0`: the load-balancing loss of mixtures of experts is not part of CoRSA.
    """

    learning_rate: float = field(default=2e-4, metadata={"help": "The initial learning rate for AdamW."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Batch size per device: the micro-batch that one perturbation is computed from."}
    )
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Number of micro-batches whose updates are averaged before an optimizer step."}
    )
    precompute_ref_log_probs: bool = field(
        default=True,
        metadata={"help": "Whether to compute the reference log probabilities once, before training."},
    )
    router_aux_loss_coef: float | None = field(
        default=0.0,
        metadata={"help": "Not part of CoRSA: must stay 0.0."},
    )

    dpo_weight: float = field(
        default=_PAPER.dpo_weight, metadata={"help": "Weight lambda of the DPO loss beside the SFT loss; 0 leaves SFT."}
    )
    sam_rho: float = field(
        default=_PAPER.sam_rho, metadata={"help": "Radius of the sharpness-aware perturbation; 0 switches it off."}
    )
    sam_eps: float = field(
        default=_PAPER.sam_eps, metadata={"help": "Epsilon added to the norms the algorithm divides by."}
    )
    pcgrad: bool = field(
        default=_PAPER.pcgrad,
        metadata={"help": "Whether to project conflicting SFT and DPO gradients off each other."},
    )
    pcgrad_form: str = field(
        default=_PAPER.pcgrad_form,
        metadata={
            "help": "'sequential' as in Algorithm 1 of the paper, or 'simultaneous' as in its text.",
            "choices": list(get_args(PCGradForm)),
        },
    )
    find_learning_rate: bool = field(
        default=False, metadata={"help": "Whether to find the learning rate by a few steps at each of a range."}
    )
    learned_at: float = field(
        default=_PAPER.learned_at,
        metadata={"help": "Probability of its new answer at which a fact is learned and stops pushing; 0 is never."},
    )
    learned_margin: float = field(
        default=_PAPER.learned_margin,
        metadata={"help": "What log p(new) - log p(old) must be as well for a fact to be learned, in nats."},
    )
    sam_start: float = field(
        default=_PAPER.sam_start, metadata={"help": "Share of the training after which the perturbation sets in."}
    )
    sam_interval: int = field(
        default=_PAPER.sam_interval, metadata={"help": "Every how many steps, from there on, one has the perturbation."}
    )
    keep_weight: float = field(
        default=_PAPER.keep_weight,
        metadata={"help": "Weight of the divergence of kept prompts from what the model said before; 0 holds nothing."},
    )
    keep_tolerance: float = field(
        default=_PAPER.keep_tolerance,
        metadata={"help": "Divergence past which the weight grows in proportion to it, in nats per token."},
    )
    keep_batch_size: int = field(default=16, metadata={"help": "Kept prompts per optimizer step and process."})
    reference: str = field(
        default="base",
        metadata={
            "help": "Reference of the DPO loss when training continues on an existing adapter: the 'base' model, or "
            "the 'adapter' as it was when training began.",
            "choices": list(REFERENCES),
        },
    )
    one_backward: bool = field(
        default=True,
        metadata={"help": "Whether to take both gradients from one backward pass where that is exact."},
    )
    share_prompts: bool = field(
        default=True,
        metadata={"help": "Whether to run a prompt once for both of its answers where that is exact and cheaper."},
    )

    def __post_init__(self) -> None:
        self.corsa_settings()  # says which setting is out of range
        self.zero = read_zero(self.deepspeed)
        check_config(self)
        self.router_aux_loss_coef = 0.0
        adopt(self)
        _choose_precision(self)
        with variables_hidden(LAUNCHED), attribute(self, "deepspeed", None):  # the trainer does what is asked of it
            super().__post_init__()
        check_checkpointing(self)  # after it, because it reads JSON given on a command line

    def corsa_settings(self) -> CorsaSettings:
        """CoRSA's own settings, without the trainer around them."""
        return CorsaSettings(**{setting.name: getattr(self, setting.name) for setting in fields(CorsaSettings)})

    def told(self) -> dict[str, Any]:
        """What a training is told by, as plain data: what its result depends on, and nothing of this machine."""
        settings = {name: getattr(self, name) for name in (*_TOLD, *(one.name for one in fields(CorsaSettings)))}
        return {name: getattr(value, "value", value) for name, value in settings.items()}


def _choose_precision(config: DPOConfig) -> None:
    """TRL's default, bfloat16, takes many times as long as float32 on a processor that has no instructions for it."""
    if config.use_cpu and getattr(config, "bf16", None) is None and not computes_in_bfloat16("cpu"):
        config.bf16 = False
