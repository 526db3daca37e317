"""What finding value vectors side by side saves over the published loop, one request after the other.

    python -m benchmarks.values [--repeats 5] [--requests 50] [--steps 25] [--layer 0] [--device cuda]

The loop is written out here as ROME, MEMIT and AlphaEdit publish it: for each request, every step is a pass of the
whole model over all of its texts with the head at every position, and the target's log-probabilities come from one more
projection of the last block's output. Every repeat runs all variants one after the other on the same requests, so that
the machine's moods fall on all of them; the table gives the median over repeats of each variant's time relative to the
loop in the same repeat. All make the same updates: the farthest that a vector lies from the loop's is in the table too.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.subjects import subject_position
from corsa_plugins.alphaedit.values.search import ValueSettings, find_values
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.batching import pad
from corsa_plugins.model.borrowing import frozen, hooked
from corsa_plugins.model.tokenization import encode_prompt, join
from corsa_plugins.testbed import load_testbed

LOOP = "one by one, as published"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args(argv)

    logging.getLogger("corsa_plugins").setLevel(logging.ERROR)  # vectors that fall short are no matter here
    testbed = load_testbed()
    model, tokenizer = testbed.model.to(arguments.device), testbed.tokenizer
    requests = testbed.world.edit_rounds(n_rounds=1, size=arguments.requests, seed=0, untouched=0).rounds[0]
    contexts = generate_contexts(model, tokenizer)
    settings = ValueSettings(steps=arguments.steps, clamp=4.0)

    def ours(**changes: Any) -> Callable[[], Tensor]:
        chosen = replace(settings, **changes)
        return lambda: find_values(model, tokenizer, requests, arguments.layer, contexts, chosen).vectors

    variants: dict[str, Callable[[], Tensor]] = {
        LOOP: lambda: torch.stack(
            [published_value(model, tokenizer, one, arguments.layer, contexts, settings) for one in requests], dim=1
        ),
        "one by one": ours(batch_size=1),
        "batches of 16, everything run again": ours(reuse_prefix=False),
        "batches of 16": ours(),
        "batches of 50": ours(batch_size=50),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    vectors: dict[str, Tensor] = {}
    for _ in range(arguments.repeats):
        for name, find in variants.items():
            start = time.perf_counter()
            vectors[name] = find()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(_table(seconds, vectors, model, arguments))


def published_value(
    model: Any, tokenizer: Any, request: EditRequest, layer: int, contexts: Sequence[str], settings: ValueSettings
) -> Tensor:
    """v* of one request by the published loop."""
    parts = find_architecture(model)
    block, last, norm, head = parts.block(layer).module, parts.blocks[-1].module, parts.norm.module, parts.head.module
    subject = str(request.subject)
    texts = [context.replace("{}", request.prompt) for context in contexts]
    joined = [join(tokenizer, text, request.target_new) for text in texts]
    rows = [[*one.prompt_ids, *one.target_ids[:-1]] for one in joined] + [encode_prompt(tokenizer, f"{subject} is a")]
    places = [subject_position(tokenizer, text, subject) for text in [*texts, f"{subject} is a"]]
    ids, mask = (part.to(model.device) for part in pad(rows))
    targets = torch.full((len(contexts), ids.shape[1]), -100, device=model.device)
    for i, one in enumerate(joined):
        targets[i, len(rows[i]) - len(one.target_ids) : len(rows[i])] = torch.tensor(one.target_ids)
    numbers, spots = torch.arange(len(rows)), torch.tensor(places)
    delta = torch.zeros(parts.hidden_size, device=model.device, requires_grad=True)
    kept: dict[str, Any] = {}

    def edit(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        kept.setdefault("initial", hidden[0, places[0]].detach().clone())
        hidden[numbers, spots] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def read(module: Any, args: Any, output: Any) -> None:
        kept["last"] = output[0] if isinstance(output, tuple) else output

    optimizer = torch.optim.Adam([delta], lr=settings.lr)
    with frozen(model), torch.enable_grad(), hooked(block, edit), hooked(last, read):
        for step in range(settings.steps):
            optimizer.zero_grad()
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            now = F.log_softmax(logits[-1, places[-1]], dim=-1)
            before = kept.setdefault("kl", now.detach().clone())
            log_probs = F.log_softmax(head(norm(kept["last"][: len(contexts)])), dim=2)
            chosen = log_probs.gather(2, targets.clamp_min(0)[..., None])[..., 0] * (targets != -100)
            nll = (-chosen.sum(1) / (targets != -100).sum(1)).mean()
            kl = settings.kl_factor * F.kl_div(before, now, log_target=True, reduction="sum")
            loss = nll + kl + settings.weight_decay * delta.norm() / kept["initial"].norm() ** 2
            if loss.item() < settings.stop_loss or step == settings.steps - 1:
                break
            loss.backward()
            optimizer.step()
            limit = settings.clamp * kept["initial"].norm()
            if delta.norm() > limit:
                with torch.no_grad():
                    delta.mul_(limit / delta.norm())
    result: Tensor = (kept["initial"] + delta).detach()
    return result


def _table(
    seconds: dict[str, list[float]], vectors: dict[str, Tensor], model: Any, arguments: argparse.Namespace
) -> Table:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        title=f"Value vectors of {arguments.requests} requests, at most {arguments.steps} steps, block "
        f"{arguments.layer} of {len(find_architecture(model).blocks)}; {model.num_parameters() / 1e6:.1f} M "
        f"parameters; {device}; {names}",
        title_style="",
    )
    for heading in ("", "median time", "relative to the loop", "range", "farthest from it"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[LOOP], strict=True)]
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        off = ((vectors[name] - vectors[LOOP]).norm(dim=0) / vectors[LOOP].norm(dim=0)).max()
        median = f"{statistics.median(ratios):.3f} x"
        table.add_row(name, f"{statistics.median(values):.2f} s", median, spread, f"{float(off):.1e}")
    return table


if __name__ == "__main__":
    main()
