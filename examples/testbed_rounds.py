"""Two updates on one adapter, on the embedded testbed: no GPU, no network, two minutes on two cores.

python examples/testbed_rounds.py
"""

from pathlib import Path

import rich

from corsa_plugins.evaluation import evaluate, summary_table
from corsa_plugins.testbed import load_testbed
from trl_ext.rounds import CORSA, train_update

testbed = load_testbed()
plan = testbed.world.edit_rounds(n_rounds=2, size=100, seed=0)
first, second = plan.rounds

trainer = train_update(testbed.model, testbed.tokenizer, first, CORSA, Path("runs/testbed/round-1"))
right_after = evaluate(trainer.model, testbed.tokenizer, first, label="right after", untouched=plan.untouched)

# The second update goes on with the same adapter; the reference of the DPO loss stays the base model.
trainer = train_update(trainer.model, testbed.tokenizer, second, CORSA, Path("runs/testbed/round-2"))
after_all = evaluate(trainer.model, testbed.tokenizer, first, label="after round 2", untouched=plan.untouched)

metrics = ["efficacy", "generality", "old_retention", "untouched"]
rich.print(summary_table([right_after, after_all], metrics, title="Round 1"))
