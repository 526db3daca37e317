"""Methods with nothing set, on small models of other families, each of which knows a world of its own.

    python -m benchmarks.families [--families gemma2 olmo2 ...] [--methods alphaedit+ corsa ...] [--seeds 3 4 5]

The testbed is a Llama, and much was chosen on it. Here the same corpus is taught to other architectures: norms behind
the FFN, learned positions and Conv1D, parallel attention. Every method then edits two rounds with the settings that it
has when none are given (AlphaEdit's are chosen for the model, adapters and R-SFT have ``careful``). A family's world,
tokenizer and initial values follow from its own seed; ``--seeds`` are those of the edits. A stopped run goes on where
it was.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.methods import table
from corsa_plugins.bench.protocols import ProtocolResult, UpdatePlan, temporal_stream
from corsa_plugins.bench.protocols.plan import method_folder
from corsa_plugins.demo.run import SharedStatistics, default_methods, demo_methods, run_method
from corsa_plugins.demo.worlds import AtlasWorld, Rounds
from corsa_plugins.files import atomic_directory
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.borrowing import hooked, random_state_kept
from corsa_plugins.model.precision import computes_in_bfloat16
from corsa_plugins.testbed.build import RECIPE_FILE, WORLD_FILE, read_testbed
from corsa_plugins.testbed.corpus import Batch, Corpus, Kind, sentences
from corsa_plugins.testbed.facts import WorldConfig
from corsa_plugins.testbed.recipe import ModelConfig, TestbedRecipe, TrainingConfig
from corsa_plugins.testbed.tokenizer import train_tokenizer
from corsa_plugins.testbed.train import schedule, visibility
from corsa_plugins.testbed.world import World

_HIDDEN, _FFN, _BLOCKS, _HEADS = 128, 1024, 4, 4
_GROUPED = {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}


@dataclass(frozen=True)
class Family:
    """An architecture to teach a world to.

    Attributes:
        seed: Of the world, the tokenizer, the initial values and the order of the corpus.
        config: What its configuration has beside the sizes that all have.
    """

    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "gemma2": Family(11, {**_GROUPED, "query_pre_attn_scalar": 32, "sliding_window": 128}),
    "gpt_neox": Family(12),
    "olmo2": Family(13, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gpt2": Family(14, {"n_inner": _FFN, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}


def recipe(family: str) -> TestbedRecipe:
    """160 people, 800 facts; four blocks in place of the testbed's three."""
    seed = FAMILIES[family].seed
    return TestbedRecipe(
        world=WorldConfig(n_subjects=160, seed=seed),
        model=ModelConfig(layers=_BLOCKS, hidden=_HIDDEN, ffn=_FFN, heads=_HEADS),
        training=TrainingConfig(steps=700),
        seed=seed,
    )


def build(family: str, folder: Path) -> None:
    """Teach a world to a family, as the testbed was taught its own; nothing if the folder is there."""
    if folder.exists():
        return
    of_it = recipe(family)
    world = World.build(of_it.world)
    tokenizer = train_tokenizer(sentences(world), of_it.model.vocab, of_it.model.max_length)
    model = new_model(family, of_it, tokenizer)
    _teach(model, Corpus(world, tokenizer, of_it.training, seed=of_it.seed), of_it.training, family)
    with atomic_directory(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / RECIPE_FILE).write_text(json.dumps(of_it.as_dict()), encoding="utf-8")
        (new / WORLD_FILE).write_text(json.dumps(world.to_dict()), encoding="utf-8")


def new_model(family: str, of_it: TestbedRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Freshly initialised; the global random state is left as it was."""
    sizes = of_it.model
    names = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.max_length,
        **({} if "n_inner" in FAMILIES[family].config else {"intermediate_size": sizes.ffn}),
        **names,
        **FAMILIES[family].config,
    )
    with random_state_kept([]):
        torch.default_generator.manual_seed(of_it.seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _teach(model: PreTrainedModel, corpus: Corpus, config: TrainingConfig, name: str) -> None:
    """The testbed's own training (:mod:`corsa_plugins.testbed.train`), of a model of any family."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    model.train()
    half = config.bfloat16 and computes_in_bfloat16("cpu")
    for step in tqdm(range(config.steps), desc=name, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config)
        batch = corpus.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=half), seen(model, batch):
            logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
        loss = _loss(logits, batch, config.text_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _loss(logits: Tensor, batch: Batch, text_weight: float) -> Tensor:
    weights = torch.where(batch.kinds == Kind.ANSWER, 1.0, text_weight)
    weights = weights.masked_fill(batch.starts | (batch.documents < 0), 0.0)[:, 1:]
    losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


@contextmanager
def seen(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Inside the context every token sees what :func:`corsa_plugins.testbed.train.visibility` lets it see."""
    first, later = visibility(batch)
    with ExitStack() as stack:
        for number, block in enumerate(find_architecture(model).blocks):
            seen = later if number else first
            mask = torch.zeros(seen.shape).masked_fill(~seen, -1e30)[:, None]
            attention = next(m for n, m in block.module.named_children() if n in ("self_attn", "attn", "attention"))
            place = list(inspect.signature(type(attention).forward).parameters).index("attention_mask") - 1
            put = partial(_put_mask, place, mask)
            stack.enter_context(hooked(attention, put, before=True, with_kwargs=True))
        yield


def _put_mask(
    place: int, mask: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > place:
        return (*args[:place], mask, *args[place + 1 :]), kwargs
    return args, {**kwargs, "attention_mask": mask}


@dataclass(frozen=True)
class FamilyWorld(AtlasWorld):
    """A family's model and its world, with the settings that methods have when none are given."""

    def plan(self, rounds: Rounds) -> UpdatePlan:
        world = read_testbed(self.folder).world
        edits = world.edit_rounds(n_rounds=2, size=rounds.size, seed=rounds.seed, untouched=rounds.untouched)
        cut = [
            [r.model_copy(update={"neighborhood": r.neighborhood[: self.neighbours]}) for r in s] for s in edits.rounds
        ]
        return temporal_stream(cut, untouched=edits.untouched)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        bed = read_testbed(self.folder)
        return bed.model, bed.tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", choices=list(demo_methods()), default=list(default_methods()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--size", type=int, default=20, help="edits in a round")
    parser.add_argument("--untouched", type=int, default=100, help="facts to watch, at most")
    parser.add_argument("--output", type=Path, default=Path("runs/families"))
    arguments = parser.parse_args(argv)
    console = Console()
    for family in arguments.families:
        folder = arguments.output / family
        build(family, folder / "model")
        world = FamilyWorld(folder / "model")
        statistics = SharedStatistics(folder / "statistics", tuple(arguments.methods))
        results: dict[tuple[str, int], ProtocolResult] = {}
        for seed in arguments.seeds:
            for name in arguments.methods:
                output = folder / f"seed-{seed}" / method_folder(name)
                rounds = Rounds(arguments.size, seed, arguments.untouched)
                results[name, seed] = run_method(name, output, rounds, statistics, world, lambda *_: None)
        wide = console if console.is_terminal else Console(width=220)
        wide.print(table(results, arguments.seeds, f"a small {family}, two rounds of {arguments.size} edits"))


if __name__ == "__main__":
    main()
