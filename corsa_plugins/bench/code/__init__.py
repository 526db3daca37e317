"""Updates of code: what a model writes is run (UPass, SPass; CoRSA, section 5.3).

* :mod:`~corsa_plugins.bench.code.tasks`: what is asked, and which programs an answer may mean;
* :mod:`~corsa_plugins.bench.code.answering`: the model writes;
* :mod:`~corsa_plugins.bench.code.running`: what it wrote runs in the sandbox;
* :mod:`~corsa_plugins.bench.code.passes`: pass@k;
* :mod:`~corsa_plugins.bench.code.measure`, :mod:`~corsa_plugins.bench.code.results`: all of it, kept, and the figures.
"""

from corsa_plugins.bench.code.answering import Sampling, write_answers
from corsa_plugins.bench.code.measure import ANSWERS, check_references, measure_code
from corsa_plugins.bench.code.passes import pass_at_k
from corsa_plugins.bench.code.results import CODE, CodeResult, Judged
from corsa_plugins.bench.code.running import Verdict, judge
from corsa_plugins.bench.code.tasks import CodeTask, humaneval_task, update_task

__all__ = [
    "ANSWERS",
    "CODE",
    "CodeResult",
    "CodeTask",
    "Judged",
    "Sampling",
    "Verdict",
    "check_references",
    "humaneval_task",
    "judge",
    "measure_code",
    "pass_at_k",
    "update_task",
    "write_answers",
]
