"""Edit requests as a task of lm-evaluation-harness, and what we count as an answer as metrics of it.

The harness finds tasks in folders that it is told of, so that its own command is enough::

    lm_eval run --model hf --model_args pretrained=edited --tasks edits \\
        --include_path "$(python -m lm_eval_ext)" --metadata '{"requests": "facts.jsonl"}'

* :data:`TASKS`: the folder, which ``python -m lm_eval_ext`` prints;
* :mod:`lm_eval_ext.edits`: the task ``edits``;
* :mod:`lm_eval_ext.metrics`: metrics and a filter for tasks of one's own.
"""

from pathlib import Path

__all__ = ["TASKS"]

TASKS = Path(__file__).parent / "tasks"
"""The folder with the task files, for ``--include_path`` or ``TaskManager(include_path=...)``."""
