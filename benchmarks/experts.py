"""Edits of routed experts: small mixtures trained here to know facts, edited in closed form (docs/families.md).

    python -m benchmarks.experts [--families mixtral qwen3_moe] [--seeds 0 1 2] [--output runs/experts]

Each model is trained on the testbed's kind of world once, by a seeded script, and kept in the output folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import hooked, random_state_kept
from corsa_plugins.testbed.build import Testbed
from corsa_plugins.testbed.corpus import Corpus, sentences
from corsa_plugins.testbed.facts import WorldConfig
from corsa_plugins.testbed.recipe import ModelConfig, TestbedRecipe, TrainingConfig
from corsa_plugins.testbed.tokenizer import train_tokenizer
from corsa_plugins.testbed.train import batch_loss, schedule
from corsa_plugins.testbed.world import World

RECIPE = TestbedRecipe(
    world=WorldConfig(n_subjects=120, n_relations=4, n_answers=12),
    model=ModelConfig(layers=2, hidden=128, ffn=256, heads=4, vocab=1024),
    training=TrainingConfig(steps=700, rows=16, row_length=96, warmup=30, bfloat16=False),
)
"""``ffn`` is the inner width of one expert."""

BALANCE = 0.02
"""Weight of the auxiliary loss that has all experts take tokens."""

FAMILIES: dict[str, Callable[..., Any]] = {
    "mixtral": lambda **sizes: hf.MixtralForCausalLM(
        hf.MixtralConfig(intermediate_size=RECIPE.model.ffn, num_local_experts=8, num_experts_per_tok=2, **sizes)
    ),
    # its weights of a token's experts do not sum to one
    "qwen3_moe": lambda **sizes: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(
            moe_intermediate_size=RECIPE.model.ffn, num_experts=8, num_experts_per_tok=2, norm_topk_prob=False,
            head_dim=RECIPE.model.hidden // RECIPE.model.heads, **sizes,
        )
    ),
}  # fmt: skip


def trained(family: str, folder: Path) -> Testbed:
    """The mixture of a family that knows the world of :data:`RECIPE`; trained once, and read from ``folder`` then."""
    path = folder / family
    world = World.build(RECIPE.world)
    if not (path / "trained.json").exists():
        tokenizer = train_tokenizer(sentences(world), RECIPE.model.vocab, RECIPE.model.max_length)
        model = _train(_made(family, tokenizer), tokenizer, world)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        (path / "trained.json").write_text(json.dumps(RECIPE.as_dict()), encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return Testbed(model, AutoTokenizer.from_pretrained(path), world, RECIPE, path)


def _made(family: str, tokenizer: Any) -> Any:
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": RECIPE.model.hidden, "num_hidden_layers": RECIPE.model.layers,
        "num_attention_heads": RECIPE.model.heads, "num_key_value_heads": RECIPE.model.heads,
        "max_position_embeddings": RECIPE.model.max_length, "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    with random_state_kept([]):
        torch.default_generator.manual_seed(RECIPE.seed)
        model = FAMILIES[family](**sizes)
    model.set_experts_implementation("eager")
    return model


def _train(model: Any, tokenizer: Any, world: World) -> Any:
    """As the testbed is trained, and with the auxiliary loss of mixtures."""
    config = RECIPE.training
    corpus = Corpus(world, tokenizer, config, seed=RECIPE.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    parts = find_architecture(model)
    routers = [router.module for i in range(len(parts.blocks)) if (mix := parts.mixture(i)) for router in mix.routers]
    logits: list[Tensor] = []
    model.train()
    with ExitStack() as stack:
        for router in routers:
            stack.enter_context(hooked(router, lambda _, args, output: logits.append(output[0])))
        for step in (progress := tqdm(range(config.steps), desc="training", unit="step")):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            logits.clear()
            loss = batch_loss(model, corpus.batch(), config.text_weight)
            balance = load_balancing_loss_func(tuple(logits), 8, 2)
            (loss + BALANCE * balance).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}", balance=f"{float(balance):.2f}")
    return model.eval()
