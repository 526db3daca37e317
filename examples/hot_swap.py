"""Two batches of edits as two adapters on one base: switched per request, and mixed in one batch of requests.

python examples/hot_swap.py [OUTPUT]
"""

import sys
import time
from statistics import median

import rich
import torch

from corsa_plugins.adapters import export_state
from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, collect_statistics
from corsa_plugins.model.asking import score_targets
from corsa_plugins.model.loading import put_adapters
from corsa_plugins.testbed import load_testbed, texts_of_testbed

output = sys.argv[1] if len(sys.argv) > 1 else "runs/hot_swap"
testbed = load_testbed()
model, tokenizer = testbed.model, testbed.tokenizer
batches = dict(zip(("monday", "tuesday"), testbed.world.edit_rounds(n_rounds=2, size=3).rounds, strict=True))

settings = AlphaEditSettings.load("testbed").alphaedit()
statistics = collect_statistics(model, tokenizer, texts_of_testbed(testbed), settings.layers, n_tokens=40_000)
editor = AlphaEditor(model, tokenizer, statistics, settings)
for name, requests in batches.items():
    editor.edit(requests, name=name, answers=False)
    export_state(editor.state, f"{output}/{name}", batches=[name], base=str(testbed.path))
editor.revert_all()  # the base again: what follows is served from it and the adapters alone

served = put_adapters(model, {name: f"{output}/{name}" for name in batches})
seconds = []
for active in ["monday", "tuesday"] * 10:
    started = time.perf_counter()
    served.set_adapter(active)
    seconds.append(time.perf_counter() - started)
for active in batches:
    served.set_adapter(active)
    for asked, requests in batches.items():
        scores = score_targets(served, tokenizer, [(r.prompt, r.target_new) for r in requests])
        rich.print(f"{active} answers {sum(score.top1 for score in scores)} of {len(requests)} edits of {asked}")
rich.print(f"switching: {1000 * median(seconds):.2f} ms, median of {len(seconds)}")

# One batch of requests, each with an adapter of its own; "__base__" is none.
ids = tokenizer(batches["monday"][0].prompt, return_tensors="pt")["input_ids"].repeat(3, 1)
with torch.no_grad():
    choice = served(input_ids=ids, adapter_names=["__base__", "monday", "tuesday"]).logits[:, -1].argmax(-1)
rich.print("base, monday, tuesday go on with:", [tokenizer.decode([token]) for token in choice.tolist()])
