"""Edit facts by R-SFT, then merge the edited model into its base through mergekit. Two minutes on a CPU.

python examples/mergekit/rsft_then_merge.py runs/merge
"""

import sys
from pathlib import Path

import rich
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM

import mergekit_ext
from corsa_plugins.evaluation import evaluate, summary_table
from corsa_plugins.requests import write_requests
from corsa_plugins.rsft import RSFTSettings, rsft
from corsa_plugins.testbed import load_testbed

folder = Path(sys.argv[1])
bed = load_testbed()
plan = bed.world.edit_rounds(n_rounds=1, size=20, seed=0, untouched=200)
(requests,) = plan.rounds

for name in ("base", "edited"):
    if name == "edited":
        rsft(bed.model, bed.tokenizer, requests, RSFTSettings(layer=1), progress=True)
    bed.model.save_pretrained(folder / name)
    bed.tokenizer.save_pretrained(folder / name)
write_requests(folder / "requests.jsonl", requests)  # for `corsa merge-sweep`
write_requests(folder / "untouched.jsonl", plan.untouched)

recipe = {
    "merge_method": "scaled_pruned_delta",
    "base_model": str(folder / "base"),
    "models": [{"model": str(folder / "edited"), "parameters": {"weight": 0.8, "density": 0.5}}],
}
(folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))  # for `corsa merge`
mergekit_ext.register()  # makes `scaled_pruned_delta` known to mergekit
run_merge(MergeConfiguration.model_validate(recipe), str(folder / "merged"), MergeOptions())

results = [
    evaluate(AutoModelForCausalLM.from_pretrained(folder / name), bed.tokenizer, requests, label=name,
             untouched=plan.untouched, progress=False)
    for name in ("base", "edited", "merged")
]  # fmt: skip
rich.print(summary_table(results, ["efficacy", "generality", "specificity", "untouched"]))
