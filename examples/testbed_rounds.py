"""Two updates on one adapter, on the embedded testbed: no GPU, no network, two minutes on two cores.

python examples/testbed_rounds.py
"""

from pathlib import Path

import rich

from corsa_plugins.evaluation import evaluate, summary_table
from corsa_plugins.testbed import load_testbed
from trl_ext.methods import corsa

testbed = load_testbed()
plan = testbed.world.edit_rounds(n_rounds=2, size=100, seed=0)
first, second = plan.rounds

session = corsa("testbed").start(testbed.model, testbed.tokenizer, seed=0)
session.update(first, Path("runs/testbed/round-1"))
right_after = evaluate(session.model, testbed.tokenizer, first, label="right after", untouched=plan.untouched)

# The second update goes on with the same adapter; the reference of the DPO loss stays the base model.
session.update(second, Path("runs/testbed/round-2"))
after_all = evaluate(session.model, testbed.tokenizer, first, label="after round 2", untouched=plan.untouched)

metrics = ["efficacy", "generality", "old_retention", "untouched"]
rich.print(summary_table([right_after, after_all], metrics, title="Round 1"))
