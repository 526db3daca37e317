"""Edits of mixtures of experts: small ones trained here to know facts, edited in closed form (docs/families.md).

    python -m benchmarks.experts [--families NAME ...] [--methods NAME ...] [--seeds 0 1 2] [--output DIR]

Each model is trained on the testbed's kind of world once, by a seeded script, and kept in the output folder. 20 facts
are edited at once, in the first block, by AlphaEdit+, AlphaEdit and MEMIT: in the routed experts, or in the shared one
where there is one. Routed experts are also edited with what an editor of dense FFNs would assume of them: that a
token's key is the experts' keys as they are, without the gates, or that one expert is the whole FFN. *Settings auto*
are those that `corsa edit --settings auto` would choose for each batch. Neighbours are facts of the same old answer
about people that no edit is about; other facts of the edited people, whose key at the name is the edited one's, are
apart. Results are appended to `results.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from benchmarks.family import right_answers
from benchmarks.intervals import shown
from benchmarks.rows import append_row, read_rows
from corsa_plugins.alphaedit import (
    AlphaEditor,
    AlphaEditSettings,
    KeyStatistics,
    NullSpaceRule,
    ValueSettings,
    collect_statistics,
)
from corsa_plugins.alphaedit.auto import Choice, choose_settings
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import Architecture, LinearMap, RoutedExperts, find_architecture
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.borrowing import hooked, random_state_kept
from corsa_plugins.model.routed import RoutedKeys
from corsa_plugins.testbed import texts_of_testbed
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

EXPERTS, TAKEN = 8, 2
_FFN, _HEAD = RECIPE.model.ffn, RECIPE.model.hidden // RECIPE.model.heads
_LOCAL = {"intermediate_size": _FFN, "num_local_experts": EXPERTS, "num_experts_per_tok": TAKEN}
_ROUTED = {"moe_intermediate_size": _FFN, "num_experts": EXPERTS, "num_experts_per_tok": TAKEN, "head_dim": _HEAD}
_DEEPSEEK = {
    "n_routed_experts": EXPERTS, "num_experts_per_tok": TAKEN, "moe_intermediate_size": _FFN, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 64, "kv_lora_rank": 64,
    "qk_rope_head_dim": _HEAD // 2, "qk_nope_head_dim": _HEAD // 2, "v_head_dim": _HEAD,
}  # fmt: skip
FAMILIES: dict[str, Callable[..., Any]] = {
    "mixtral": lambda **sizes: hf.MixtralForCausalLM(hf.MixtralConfig(**_LOCAL, **sizes)),
    # its weights of a token's experts do not sum to one
    "qwen3_moe": lambda **sizes: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(norm_topk_prob=False, **_ROUTED, **sizes)),
    # a bias and a clamp within every expert, down maps stored as (experts, in, out)
    "gpt_oss": lambda **sizes: hf.GptOssForCausalLM(hf.GptOssConfig(head_dim=_HEAD, **_LOCAL, **sizes)),
    # an expert that every token takes, beside the routed ones
    "deepseek_v3": lambda **sizes: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**_DEEPSEEK, **sizes)),
    # likewise, behind a gate of its own
    "qwen3_5_moe": lambda **sizes: hf.Qwen3_5MoeForCausalLM(
        hf.Qwen3_5MoeTextConfig(
            shared_expert_intermediate_size=_FFN, layer_types=["full_attention"] * RECIPE.model.layers,
            **_ROUTED, **sizes,
        )
    ),
}  # fmt: skip

SETTINGS = AlphaEditSettings(
    layers=(0,),
    null_space=NullSpaceRule("share", 0.6),
    ridge=0.02,
    ridge_unit="relative",
    prior_weight=1.0,
    values=ValueSettings(steps=180, lr=0.02, lr_unit="relative", weight_decay=0.0, clamp=4.0, stop_loss=0.1),
    n_contexts=4,
)
"""Chosen on other edits (seed 9) of the Mixtral."""
PLAIN: dict[str, Any] = {"search": None, "smoothing": None}
MEMIT: dict[str, Any] = {**PLAIN, "penalty": "outputs", "null_space": None, "prior_weight": 0.0, "ridge": 0.16}

FIGURES = ("efficacy", "generality", "neighbours", "untouched", "same subjects")


class Ungated(RoutedExperts):
    """Keys of the experts as if each had the weight 1."""

    def keys(self, args: Sequence[Any], kwargs: Mapping[str, Any], tokens: Tensor | None = None) -> RoutedKeys:
        hidden, index, weights = args
        return super().keys((hidden, index, torch.ones_like(weights)), {}, tokens)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """What is assumed is not so."""


class OneExpert(Ungated):
    """Keys as if the expert of the largest weight were the FFN."""

    def keys(self, args: Sequence[Any], kwargs: Mapping[str, Any], tokens: Tensor | None = None) -> RoutedKeys:
        hidden, index, weights = args
        first = weights.argmax(-1, keepdim=True)
        return super().keys((hidden, index.gather(-1, first), weights.gather(-1, first)), {}, tokens)


@dataclass(frozen=True)
class Assuming(Architecture):
    """The parts of a mixture, whose experts are taken for something else."""

    kind: type[RoutedExperts] = RoutedExperts

    def edited(self, layer: int) -> LinearMap:
        found = super().edited(layer)
        return self.kind(**{field.name: getattr(found, field.name) for field in fields(found)})


METHODS: dict[str, tuple[type[RoutedExperts], dict[str, Any] | None]] = {
    "AlphaEdit+": (RoutedExperts, {}),
    "AlphaEdit+, settings auto": (RoutedExperts, None),
    "AlphaEdit": (RoutedExperts, PLAIN),
    "MEMIT": (RoutedExperts, MEMIT),
    "AlphaEdit, keys without gates": (Ungated, PLAIN),
    "AlphaEdit, one expert as the FFN": (OneExpert, PLAIN),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/experts"))
    arguments = parser.parse_args(argv)
    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # what was not edited is in the efficacy
    torch.set_num_threads(1)  # more do nothing for models of this size
    console, path = Console(width=160), arguments.output / "results.jsonl"
    arguments.output.mkdir(parents=True, exist_ok=True)
    for family in arguments.families:
        bed, known = trained(family, arguments.output), {}
        routed = isinstance(find_architecture(bed.model).edited(SETTINGS.layers[0]), RoutedExperts)
        for seed in arguments.seeds:
            for method in arguments.methods:
                kind, _ = METHODS[method]
                if not routed and kind is not RoutedExperts:
                    continue  # the shared expert is an FFN, and nothing has to be assumed
                key = {"family": family, "seed": seed, "edits": arguments.edits, "method": method}
                if any(row.items() >= key.items() for row in read_rows(path)):
                    continue
                if kind not in known:
                    known[kind] = _statistics(bed, kind)
                row = {**key, **measure(bed, method, known[kind], seed, arguments.edits)}
                append_row(path, row)
                console.print(json.dumps(row), soft_wrap=True)
    rows = [row for row in read_rows(path) if row["seed"] in arguments.seeds and row["edits"] == arguments.edits]
    console.print(table([row for row in rows if row["family"] in arguments.families]))


def measure(bed: Testbed, method: str, statistics: KeyStatistics, seed: int, edits: int) -> dict[str, Any]:
    """Shares of right answers after the edits, and of neighbours before them; and why settings were chosen."""
    kind, changes = METHODS[method]
    plan = bed.world.edit_rounds(1, edits, seed=seed, untouched=80)
    (requests,) = plan.rounds
    choice = Choice(replace(SETTINGS, **(changes or {})), "")
    if changes is None:
        choice = choose_settings(bed.model, bed.tokenizer, statistics, requests)
    editor = AlphaEditor(bed.model, bed.tokenizer, statistics, choice.settings, architecture=_parts(bed, kind))
    before = _spared(bed, requests)
    editor.edit(requests, answers=False)
    found = {
        "efficacy": right_answers(bed.model, bed.tokenizer, requests),
        "generality": right_answers(bed.model, bed.tokenizer, requests, reworded=True),
        "neighbours": _spared(bed, requests),
        "neighbours before": before,
        "untouched": right_answers(bed.model, bed.tokenizer, plan.untouched),
        "same subjects": right_answers(bed.model, bed.tokenizer, plan.same_subject),
    }
    editor.revert_all()
    return found if changes is not None else {**found, "chosen": choice.reason}


def _spared(bed: Testbed, requests: Sequence[EditRequest]) -> float:
    edited = {request.subject or "" for request in requests}
    probes = {
        (probe.prompt, str(probe.answer))
        for request in requests
        for probe in request.neighborhood
        if not any(subject in probe.prompt for subject in edited)
    }
    scores = score_targets(bed.model, bed.tokenizer, sorted(probes), batch_size=128)
    return sum(score.top1 for score in scores) / len(scores)


def _parts(bed: Testbed, kind: type[RoutedExperts]) -> Architecture:
    found = find_architecture(bed.model)
    if kind is RoutedExperts:
        return found
    return Assuming(**{field.name: getattr(found, field.name) for field in fields(found)}, kind=kind)


def _statistics(bed: Testbed, kind: type[RoutedExperts]) -> KeyStatistics:
    parts = _parts(bed, kind)
    return collect_statistics(
        bed.model, bed.tokenizer, texts_of_testbed(bed), SETTINGS.layers, n_tokens=40_000, architecture=parts
    )


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each family and method: means over the seeds with the half-width of their 95 % interval."""
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    found = Table(title=f"{len({row['seed'] for row in rows})} seeds, percent; {names}", title_style="")
    for heading in ("family", "method", *FIGURES, "neighbours before"):
        found.add_column(heading)
    for family, method in dict.fromkeys((row["family"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["family"], row["method"]) == (family, method)]
        shares = [shown([row[name] for row in chosen], 100) for name in (*FIGURES, "neighbours before")]
        found.add_row(family, method, *shares)
    return found


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

    def note(_: Any, args: Any, output: Any) -> None:
        if isinstance(output, tuple):  # what is one tensor is the gate of a shared expert
            logits.append(output[0])

    model.train()
    with ExitStack() as stack:
        for router in routers:
            stack.enter_context(hooked(router, lambda _, args, output: logits.append(output[0])))
        for step in (progress := tqdm(range(config.steps), desc="training", unit="step")):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            logits.clear()
            loss = batch_loss(model, corpus.batch(), config.text_weight)
            balance = load_balancing_loss_func(tuple(logits), EXPERTS, TAKEN)
            (loss + BALANCE * balance).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}", balance=f"{float(balance):.2f}")
    return model.eval()


if __name__ == "__main__":
    main()
