"""Edit the facts of a JSONL file in any causal language model, in 20 lines of Python. Needs a GPU for real models.

python examples/train_corsa.py Qwen/Qwen3-4B-Instruct-2507 examples/facts.jsonl runs/facts
"""

import sys

import rich
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from corsa_plugins.evaluation import change_table, evaluate
from corsa_plugins.preferences import fill_target_old, to_preference_rows
from corsa_plugins.requests import read_requests
from trl_ext import CoRSAConfig, CoRSATrainer

name, requests_file, output = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(name)
chat = tokenizer.chat_template is not None

# Requests without an outdated answer get the model's own; those it already answers as wanted are left out.
requests = fill_target_old(model, tokenizer, read_requests(requests_file), chat_template=chat).requests
before = evaluate(model, tokenizer, requests, label="before", chat_template=chat)
trainer = CoRSATrainer(
    model,
    args=CoRSAConfig(output, num_train_epochs=10, report_to="none", use_cpu=not torch.cuda.is_available()),
    train_dataset=Dataset.from_list(to_preference_rows(requests, conversational=chat)),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()
after = evaluate(trainer.model, tokenizer, requests, label="after", chat_template=chat)
rich.print(change_table(before, after))
