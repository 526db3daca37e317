"""Edit the facts of a JSONL file with AlphaEdit+ in EasyEdit, in batches that stay. Run it in a clone of EasyEdit.

python alphaedit_plus.py llama3-8b facts.jsonl runs/alphaedit_plus
python alphaedit_plus.py my_hparams.yaml facts.jsonl runs/alphaedit_plus
"""

import sys

from easyeditor import BaseEditor
from rich.console import Console

import easyedit_ext
from corsa_plugins.requests import read_requests

model_or_file, facts, output = sys.argv[1:4]
easyedit_ext.register()

if not model_or_file.endswith(".yaml"):
    model_or_file = easyedit_ext.hparams_path("AlphaEditPlus", model_or_file)
hparams = easyedit_ext.AlphaEditPlusHyperParams.from_hparams(model_or_file)
hparams.batch_size = 4
editor = BaseEditor.from_hparams(hparams)

requests = read_requests(facts)
neighbours = [next(iter(request.neighborhood), None) for request in requests]
metrics, model, _ = editor.batch_edit(
    prompts=[request.prompt for request in requests],
    subject=[request.subject for request in requests],
    target_new=[request.target_new for request in requests],
    ground_truth=[request.target_old for request in requests],
    # to measure with; the editor never sees these
    rephrase_prompts=[next(iter(request.paraphrases), None) for request in requests],
    locality_inputs={
        "neighborhood": {
            "prompt": [probe and probe.prompt for probe in neighbours],
            "ground_truth": [probe and probe.answer for probe in neighbours],
        }
    },
    sequential_edit=True,  # every batch stays in force, and the next one works around it
    verbose=False,
)

console = Console(markup=False, highlight=False, soft_wrap=True)
for metric in metrics:
    before, after = metric["pre"], metric["post"]
    prompt, target = metric["requested_rewrite"]["prompt"], metric["requested_rewrite"]["target_new"]
    console.print(f"{prompt} {target}: rewrite_acc {before['rewrite_acc'][0]:.2f} -> {after['rewrite_acc'][0]:.2f}")
for edit in easyedit_ext.edit_report(model):  # what became of each request, and why
    console.print(str(edit))

easyedit_ext.save(model, f"{output}/edits")  # to go on from, or to take a batch out again with `corsa edit --revert`
model.save_pretrained(f"{output}/model")
editor.tok.save_pretrained(f"{output}/model")
