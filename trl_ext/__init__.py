"""CoRSA as a TRL trainer.

:mod:`~trl_ext.trainer` trains, with the settings of :mod:`~trl_ext.config` and the head of :mod:`~trl_ext.head`; what
it does beside Algorithm 1 is in :mod:`~trl_ext.attending`, what a training step moves about in :mod:`~trl_ext.step`,
what is refused in :mod:`~trl_ext.checks` and :mod:`~trl_ext.data`, and what is used of TRL beside its promises in
``_trl``. :mod:`~trl_ext.methods` are the editing methods that train with it, :mod:`~trl_ext.train` is ``corsa
train``.

:class:`CoRSAConfig` and :class:`CoRSATrainer` take the place of TRL's ``DPOConfig`` and ``DPOTrainer``;
:class:`HistoryCallback` follows the new and the old answers over the training of any trainer.
"""

from typing import TYPE_CHECKING, Any

from corsa_plugins.errors import require

if TYPE_CHECKING:
    from trl_ext.config import CoRSAConfig
    from trl_ext.history import HistoryCallback
    from trl_ext.trainer import CoRSATrainer

__all__ = ["CoRSAConfig", "CoRSATrainer", "HistoryCallback"]

_HOMES = {
    "CoRSAConfig": "trl_ext.config",
    "CoRSATrainer": "trl_ext.trainer",
    "HistoryCallback": "trl_ext.history",
}


def __getattr__(name: str) -> Any:
    # Late, so that `corsa --help` does not pay for importing TRL.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    for module in ("trl", "peft", "datasets"):
        require(module, "trl", what=f"trl_ext.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)
