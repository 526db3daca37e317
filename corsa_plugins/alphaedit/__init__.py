"""AlphaEdit+ and AlphaEdit: closed-form edits in a (relaxed) null space of what a model should keep.

The rooms, in the order an edit walks through them:

* :mod:`~corsa_plugins.alphaedit.settings`: what is edited and how; presets;
* :mod:`~corsa_plugins.alphaedit.statistics.collect`, :mod:`~corsa_plugins.alphaedit.statistics.statistics`: second
  moments of preserved keys;
* :mod:`~corsa_plugins.alphaedit.solver.nullspace`: which of their eigenvectors an edit may use;
* :mod:`~corsa_plugins.alphaedit.lookup.subjects`, :mod:`~corsa_plugins.alphaedit.lookup.contexts`,
  :mod:`~corsa_plugins.alphaedit.lookup.keys`: where a fact is looked up, and with which key;
* :mod:`~corsa_plugins.alphaedit.values.search`: the value v* that makes the model say the new answer;
* :mod:`~corsa_plugins.alphaedit.solver.conflict`: conflicts of keys (Eq. 3, 6) and the weights of earlier edits;
* :mod:`~corsa_plugins.alphaedit.solver.closed_form`: Eq. 8 and the search for eigenvectors, in dual or primal form;
* :mod:`~corsa_plugins.alphaedit.solver.smoothing`: smoothed targets and the choice between them;
* :mod:`~corsa_plugins.alphaedit.algorithm`: Algorithm 1 at one layer, line by line;
* :mod:`~corsa_plugins.alphaedit.reader`, :mod:`~corsa_plugins.alphaedit.answers`,
  :mod:`~corsa_plugins.alphaedit.preserved`: what it is given, read off a model and its statistics;
* :mod:`~corsa_plugins.alphaedit.batch`: a batch of requests through the edited layers;
* :mod:`~corsa_plugins.alphaedit.state`, :mod:`~corsa_plugins.alphaedit.transaction`: which edits are in force, and
  that they are so whole or not at all;
* :mod:`~corsa_plugins.alphaedit.report`, :mod:`~corsa_plugins.alphaedit.conflicts`,
  :mod:`~corsa_plugins.alphaedit.diagnosis`: what became of each request, what to expect;
* :mod:`~corsa_plugins.alphaedit.editor`: all of it for a user.
"""

from corsa_plugins.alphaedit.conflicts import Conflicts
from corsa_plugins.alphaedit.diagnosis import Diagnosis
from corsa_plugins.alphaedit.edited import load_edited
from corsa_plugins.alphaedit.editor import AlphaEditor, EditError, PreservedKeys
from corsa_plugins.alphaedit.report import EditReport, LayerReport, RequestReport
from corsa_plugins.alphaedit.settings import AlphaEditSettings, preset_names
from corsa_plugins.alphaedit.solver.closed_form import SearchSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingSettings
from corsa_plugins.alphaedit.state import EditBatch, EditState, StateError
from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.alphaedit.statistics.statistics import KeyStatistics
from corsa_plugins.alphaedit.values.settings import ValueSettings

__all__ = [
    "AlphaEditSettings",
    "AlphaEditor",
    "Conflicts",
    "Diagnosis",
    "EditBatch",
    "EditError",
    "EditReport",
    "EditState",
    "KeyStatistics",
    "LayerReport",
    "NullSpace",
    "NullSpaceRule",
    "PreservedKeys",
    "RequestReport",
    "SearchSettings",
    "SmoothingSettings",
    "StateError",
    "ValueSettings",
    "collect_statistics",
    "load_edited",
    "preset_names",
]
