"""Several adapters, one for each part of the facts, on the embedded testbed: no GPU, no network, half a minute.

python examples/several_adapters.py [OUTPUT]

On the command line: corsa split, corsa train, corsa evaluate-adapters, and corsa route to ask.
"""

import sys
from pathlib import Path

import rich

from corsa_plugins.bench.routing.adapters import load_adapters
from corsa_plugins.bench.routing.evaluation import evaluate_routed
from corsa_plugins.bench.routing.nearest import NearestRouter
from corsa_plugins.bench.routing.parts import request_template, split_requests
from corsa_plugins.bench.routing.report import RoutingReport
from corsa_plugins.requests import write_requests
from corsa_plugins.testbed import load_testbed
from trl_ext.methods import AdapterSettings, corsa
from trl_ext.methods.settings import TESTBED_SETTINGS

output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/several_adapters")
requests = load_testbed().world.edit_rounds(n_rounds=1, size=20, seed=0).rounds[0]

# Requests of one relation stay together: birthplaces, instruments, ... Each part gets an adapter of its own, trained in
# small batches: there are few requests in a part, and they need their steps.
method = corsa(AdapterSettings(TESTBED_SETTINGS | {"gradient_accumulation_steps": 1}))
parts = split_requests(requests, request_template, parts=3)
folders = [output / f"part-{number}" for number in range(1, len(parts) + 1)]
for part, folder in zip(parts, folders, strict=True):
    testbed = load_testbed()
    method.start(testbed.model, testbed.tokenizer, seed=0).train(part, folder)
    write_requests(folder / "requests.jsonl", part)  # where corsa evaluate-adapters looks for them

testbed = load_testbed()
model, names = load_adapters(testbed.model, folders)
# A model that follows instructions is asked with LabelRouter(model, tokenizer, descriptions), each from summarise(...);
# the testbed follows none, and is asked which part has the edit prompt most like the question.
router = NearestRouter(model, testbed.tokenizer, parts)
true = evaluate_routed(model, testbed.tokenizer, parts, names, progress=False)
routed = evaluate_routed(model, testbed.tokenizer, parts, names, router, progress=False)
report = RoutingReport([folder.name for folder in folders], [len(part) for part in parts], routed, true.evaluation)
rich.print(report.table(), report.parts_table())
