"""Facts that a pretrained model truly knows, as edits to make and facts to watch.

It asks any model any facts, and needs no download where a model comes as a package::

    made = make_atlas(packaged_model(), "real", draw=Draw(rounds=2, size=60, seed=0))
    len(made.knowledge.known), read_requests("real/round_1.jsonl")
"""

from corsa_plugins.atlas.export import Asking, Atlas, facts_of_file, facts_of_packages, make_atlas
from corsa_plugins.atlas.facts import Fact, FactError, Relation, read_facts
from corsa_plugins.atlas.knowledge import IgnoranceError, Knowledge, Known, find_known
from corsa_plugins.atlas.packaged import packaged_model
from corsa_plugins.atlas.rounds import Draw, Rounds, plan_rounds

__all__ = [
    "Asking",
    "Atlas",
    "Draw",
    "Fact",
    "FactError",
    "IgnoranceError",
    "Knowledge",
    "Known",
    "Relation",
    "Rounds",
    "facts_of_file",
    "facts_of_packages",
    "find_known",
    "make_atlas",
    "packaged_model",
    "plan_rounds",
    "read_facts",
]
