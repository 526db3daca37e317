"""Edit the facts of a JSONL file with R-SFT in EasyEdit, all at once. Run it in a clone of EasyEdit.

python rsft.py qwen2.5-7b facts.jsonl runs/rsft
python rsft.py my_hparams.yaml facts.jsonl runs/rsft
"""

import sys

from easyeditor import BaseEditor
from rich.console import Console

import easyedit_ext
from corsa_plugins.requests import read_requests

model_or_file, facts, output = sys.argv[1:4]
easyedit_ext.register()

if not model_or_file.endswith(".yaml"):
    model_or_file = easyedit_ext.hparams_path("RSFT", model_or_file)
requests = read_requests(facts)
hparams = easyedit_ext.RSFTHyperParams.from_hparams(model_or_file)
hparams.batch_size = len(requests)  # R-SFT goes over all facts again in every epoch, so that none is forgotten
hparams.weight, hparams.density = 0.8, 0.2  # the paper's second stage: merge with the original weights
editor = BaseEditor.from_hparams(hparams)

metrics, model, _ = editor.batch_edit(
    prompts=[request.prompt for request in requests],
    target_new=[request.target_new for request in requests],
    rephrase_prompts=[next(iter(request.paraphrases), None) for request in requests],  # to measure with
    sequential_edit=True,  # the edited weights stay
    verbose=False,
)

console = Console(markup=False, highlight=False, soft_wrap=True)
for metric in metrics:
    before, after = metric["pre"], metric["post"]
    prompt, target = metric["requested_rewrite"]["prompt"], metric["requested_rewrite"]["target_new"]
    console.print(f"{prompt} {target}: rewrite_acc {before['rewrite_acc'][0]:.2f} -> {after['rewrite_acc'][0]:.2f}")
for edit in easyedit_ext.edit_report(model):
    console.print(str(edit))

model.save_pretrained(f"{output}/model")
editor.tok.save_pretrained(f"{output}/model")
