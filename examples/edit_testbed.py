"""Edit fifty facts of the embedded testbed with AlphaEdit+, look at what became of them, and take one batch back.

python examples/edit_testbed.py [OUTPUT]
"""

import sys

import rich

from corsa_plugins.alphaedit import AlphaEditor, AlphaEditSettings, collect_statistics
from corsa_plugins.evaluation import change_table, evaluate
from corsa_plugins.testbed import load_testbed, texts_of_testbed

output = sys.argv[1] if len(sys.argv) > 1 else "runs/edit_testbed"
testbed = load_testbed()
model, tokenizer = testbed.model, testbed.tokenizer
plan = testbed.world.edit_rounds(n_rounds=2, size=25, untouched=100)

# Once for a model: what its first block's keys look like on ordinary text, so that edits can keep out of their way.
settings = AlphaEditSettings.load("testbed")
statistics = collect_statistics(model, tokenizer, texts_of_testbed(testbed), settings.layers, n_tokens=40_000)

editor = AlphaEditor(model, tokenizer, statistics, settings)
before = evaluate(model, tokenizer, plan.rounds[0], untouched=plan.untouched, label="before")
rich.print(str(editor.diagnose(plan.rounds[0])))  # which of them will fight, before anything is changed

report = editor.edit(plan.rounds[0], name="first")
rich.print(str(report))
for request in report.not_edited:
    rich.print(f"  {request.name}: {request.verdict}")
editor.edit(plan.rounds[1], name="second")

after = evaluate(model, tokenizer, plan.rounds[0], untouched=plan.untouched, label="after both batches")
rich.print(change_table(before, after))

editor.state.save(f"{output}/state")
model.save_pretrained(f"{output}/model")
editor.revert("first")  # its facts are back, and the second batch stays
rich.print([batch.name for batch in editor.state.batches])
