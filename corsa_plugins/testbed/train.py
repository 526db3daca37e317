"""Training the decoder on the world."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from corsa_plugins.model.borrowing import hooked, random_state_kept
from corsa_plugins.model.precision import computes_in_bfloat16
from corsa_plugins.testbed.corpus import Batch, Corpus, Kind
from corsa_plugins.testbed.recipe import ModelConfig, TestbedRecipe, TrainingConfig
from corsa_plugins.testbed.world import World


def new_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A freshly initialised decoder; the global random state is left as it was."""
    with random_state_kept([]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.max_length,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, world: World, recipe: TestbedRecipe
) -> LlamaForCausalLM:
    """Train `model` in place on `world` as `recipe.training` says: AdamW, linear warm-up, cosine to zero."""
    config = recipe.training
    corpus = Corpus(world, tokenizer, config, seed=recipe.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    model.train()
    half = config.bfloat16 and computes_in_bfloat16("cpu")
    with tqdm(range(config.steps), desc="testbed", unit="step") as progress:
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = batch_loss(model, corpus.batch(), config.text_weight)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def schedule(step: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate at `step`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def batch_loss(model: LlamaForCausalLM, batch: Batch, text_weight: float) -> torch.Tensor:
    """Weighted mean negative log-likelihood of the batch's tokens: 1 for an answer's, `text_weight` for another."""
    first, later = (_mask(model, visible) for visible in visibility(batch))
    # Positions run on through a row: rotary embeddings only see differences.
    with block_mask(model, 0, first):
        hidden = model.model(input_ids=batch.tokens, attention_mask=later, use_cache=False).last_hidden_state
    weights = torch.where(batch.kinds == Kind.ANSWER, 1.0, text_weight)
    weights = weights.masked_fill(batch.starts | (batch.documents < 0), 0.0)[:, 1:].reshape(-1)
    wanted = weights > 0
    logits = model.lm_head(hidden[:, :-1].reshape(-1, hidden.shape[-1])[wanted])
    losses = torch.nn.functional.cross_entropy(logits, batch.tokens[:, 1:].reshape(-1)[wanted], reduction="none")
    return (losses * weights[wanted]).sum() / weights.sum()


def _mask(model: LlamaForCausalLM, visible: torch.Tensor) -> torch.Tensor:
    """(batch, 1, query, key): what a token sees, as the model's attention takes it; eager attention adds its mask."""
    if model.config._attn_implementation == "eager":
        visible = torch.where(visible, 0.0, torch.finfo(model.dtype).min).to(model.dtype)
    return visible[:, None]


def visibility(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which token (dim 2) each token (dim 1) may attend to: in the first block, and in the later ones.

    A token sees its document so far. In a sheltered document, what is outside a name sees nothing of it in the first
    block, and only its last token in the later ones. The model must then gather what it knows of a person at the
    last token of the name, in the first block, which is where large models have it and where an editor of FFN
    weights writes. Left alone, so small a model rather copies the name to where the answer is asked and looks
    it up there, and no vector at the name reaches the target.
    """
    length = batch.tokens.shape[1]
    same = batch.documents[:, :, None] == batch.documents[:, None, :]
    visible = same & torch.ones(length, length, dtype=torch.bool).tril()
    in_name = (batch.kinds == Kind.NAME) | (batch.kinds == Kind.NAME_END)
    outside = (batch.sheltered & ~in_name)[:, :, None]
    first = visible & ~(outside & in_name[:, None, :])
    later = visible & ~(outside & (batch.kinds == Kind.NAME)[:, None, :])
    return first, later


@contextmanager
def block_mask(model: LlamaForCausalLM, block: int, mask: torch.Tensor) -> Iterator[None]:
    """Inside the context, block `block` attends by `mask` (batch, 1, query, key) instead of the model's."""

    def replace(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, {**kwargs, "attention_mask": mask}

    with hooked(model.model.layers[block].self_attn, replace, before=True, with_kwargs=True):
        yield
