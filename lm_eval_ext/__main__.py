"""Print the folder of the task files: ``lm_eval run --include_path "$(python -m lm_eval_ext)"``."""

import sys

from lm_eval_ext import TASKS

__all__: list[str] = []

if __name__ == "__main__":
    sys.stdout.write(f"{TASKS}\n")
