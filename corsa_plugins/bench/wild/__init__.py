"""Edits as they are met in use: free answers, strict and lenient measures side by side, and what edits survive.

* :mod:`~corsa_plugins.bench.wild.questions`: what is asked of an edit;
* :mod:`~corsa_plugins.bench.wild.answers`: what a model says by itself, and what measures make of it;
* :mod:`~corsa_plugins.bench.wild.judge`: a judge of answers, a model's or the user's own, and how far it agrees with
  labels made by hand;
* :mod:`~corsa_plugins.bench.wild.survive`: an edited model after further training, rounding, and merging with its base;
* :mod:`~corsa_plugins.bench.wild.drift`: how far hidden states move.

The protocol that puts them together is :mod:`corsa_plugins.bench.protocols.wild`.
"""

from corsa_plugins.bench.wild.answers import MEASURES, WildAnswer, ask_wild, wild_summary
from corsa_plugins.bench.wild.questions import FORMS, Form, Question, wild_questions

__all__ = [
    "FORMS",
    "MEASURES",
    "Form",
    "Question",
    "WildAnswer",
    "ask_wild",
    "wild_questions",
    "wild_summary",
]
