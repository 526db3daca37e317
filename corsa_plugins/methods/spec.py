"""What an editing method is: one value that says all of it, and what it has to offer to be run.

:class:`MethodSpec` is what everything that offers methods reads: ``corsa edit``, ``corsa protocol``, ``corsa demo``,
the benchmarks, EasyEdit's registration and the help texts. One more method is one file with a value of this class and
one line that names it, an entry point in the group ``corsa_plugins.methods``::

    mine = MethodSpec(
        name="mine", title="Mine", summary="Moves the weights a little.", source="doi:10.1000/mine",
        make=lambda settings=None: MyMethod(MySettings.load(settings)), settings=MySettings, changes=("weights",),
    )
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Protocol

from corsa_plugins.errors import MissingExtraError, SettingError, extra_is_missing, naming_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from corsa_plugins.data.requests import EditRequest

__all__ = ["REPORT", "STORE", "TESTBED", "Change", "Method", "MethodSpec", "Session", "in_form"]

logger = logging.getLogger(__name__)

REPORT = "report.json"
"""Name of the file, in the folder of an update, in which a method says what became of each request."""

STORE = "facts.jsonl"
"""Name of the file, in the folder of an update, in which a method that changes no weight leaves its edits as text."""

TESTBED = "testbed"
"""The preset for the embedded testbed; a method that has one is among those of ``corsa demo``."""

Change = Literal["weights", "adapter", "store"]
_COMMON = ("settings", "statistics")


class Session(Protocol):
    """One model on its way through updates."""

    @property
    def model(self) -> Any:
        """The model as it is now, to be evaluated: the base model, edited in place, or a ``PeftModel`` on it."""

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        """Make one update, on top of the earlier ones.

        Args:
            requests: What to change; at least one.
            folder: Empty. Whatever :meth:`restore` needs goes there; a method that trains may put the history of its
                training there as well (:mod:`corsa_plugins.methods.history`), and one that has a report of each request
                puts that into :data:`REPORT`.
        """

    def restore(self, folder: Path) -> None:
        """Put a finished update in place instead of making it again.

        Called in the order of the updates, for each from the first on; afterwards the model is, bit for bit, what it
        was after :meth:`update` had filled ``folder``.
        """

    def close(self) -> None:
        """Give the base model back as it was, bit for bit. Also after a failed or interrupted update."""


class Method(Protocol):
    """A way to update a model, with its settings. Holds no model and no state.

    A method that can train on prompts in either form has ``in_form(chat_template)`` too, which gives the method for
    prompts in that form; see :func:`in_form`.
    """

    @property
    def name(self) -> str:
        """For tables and labels."""

    def describe(self) -> dict[str, Any]:
        """Everything its result depends on, as plain data: a run that is taken up again must have the same."""

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """Begin on a model without updates. Nothing is changed yet.

        Raises:
            CorsaError: This method cannot work on this model.
        """


@dataclass(frozen=True)
class MethodSpec:
    """An editing method: what it is called, what it needs, and how to start it. Holds no settings.

    What may be named as ``"module:attribute"`` is imported when it is wanted, so that a spec is read without the
    framework of its method.

    Attributes:
        name: By which it is chosen, as in ``--method NAME``.
        title: For tables and labels.
        summary: What it does, in one line.
        source: The paper it comes from.
        make: Makes the method. Its parameters are the method's options: ``settings`` (an object of the settings class,
            a YAML file or a preset's name), ``statistics`` (of the model's preserved keys,
            :class:`corsa_plugins.alphaedit.KeyStatistics`), and options of its own; those without a default are needed.
        settings: The class of its settings, or where it is; ``None``: it has none.
        changes: What an update changes: the weights of the model itself, an adapter on it, or both; or a store of edits
            beside it.
        reversible: Whether its edits are batches that can be taken out again, in a state that later edits go on from;
            what ``make`` gives is then a :class:`corsa_plugins.methods.alphaedit.AlphaEditMethod`.
        extra: The extra of corsa-plugins that brings the framework it needs; ``None``: it needs none.
        rank: Its place in lists and tables: the lowest comes first, and what a method is compared with before it.
        demo: Whether ``corsa demo`` runs it without being told to. It can be told to if there is a preset
            :data:`TESTBED`.
        easyedit: Where the :class:`easyedit_ext.method.EasyEditMethod` is by which EasyEdit calls it; ``None``:
            EasyEdit does not.
    """

    name: str
    title: str
    summary: str
    source: str
    make: Callable[..., Method]
    settings: type | str | None = None
    changes: tuple[Change, ...] = ("weights",)
    reversible: bool = False
    extra: str | None = None
    rank: int = 100
    demo: bool = False
    easyedit: str | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Method:
        """The method with these options.

        Raises:
            SettingError: It takes no such option, or needs one that is not given, or the settings cannot be.
            MissingExtraError: It needs a framework that is not installed.
        """
        try:
            inspect.signature(self.make).bind(*arguments, **options)
        except TypeError as error:
            takes = ", ".join(self._parameters) or "none"
            raise SettingError(f"method {self.name}: {error}; its options are: {takes}") from None
        if self.missing:
            raise self.missing
        with naming_extra(f"method {self.name}"):
            return self.make(*arguments, **options)

    @property
    def needs_statistics(self) -> bool:
        """Whether it is given statistics of the model's preserved keys (``corsa stats``)."""
        return "statistics" in self._parameters

    @property
    def needs_settings(self) -> bool:
        """Whether it has no settings of its own accord."""
        parameter = self._parameters.get("settings")
        return parameter is not None and parameter.default is parameter.empty

    @property
    def needs(self) -> tuple[str, ...]:
        """What it cannot do without, in words."""
        needs = [name for name in _COMMON if getattr(self, f"needs_{name}")]
        if self.extra:
            needs.append(f"the extra {self.extra}{', which is not installed' if self.missing else ''}")
        return tuple(needs)

    @property
    def options(self) -> tuple[str, ...]:
        """The options it takes beside settings and statistics."""
        return tuple(name for name in self._parameters if name not in _COMMON)

    @property
    def missing(self) -> MissingExtraError | None:
        """What to install, where the framework it needs is not there."""
        return extra_is_missing(self.extra, f"method {self.name}") if self.extra else None

    def settings_class(self) -> Any:
        """The class of its settings, imported; ``None`` if it has none.

        Raises:
            MissingExtraError: It needs a framework that is not installed.
        """
        with naming_extra(f"method {self.name}"):
            return resolve_name(self.settings) if isinstance(self.settings, str) else self.settings

    def presets(self) -> tuple[str, ...]:
        """Names of its settings that come with the package.

        Raises:
            MissingExtraError: It needs a framework that is not installed.
        """
        return tuple(getattr(self.settings_class(), "presets", tuple)())

    @property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.make).parameters)


def in_form(method: Method, chat_template: bool) -> Method:
    """The method, trained on prompts in the form that they are asked in, unless its settings say otherwise.

    A method that has no ``in_form`` is left as it is; where prompts are asked through the chat template, a warning says
    that it is trained without.

    Args:
        method: Any.
        chat_template: Whether prompts are asked through the tokenizer's chat template.
    """
    if hasattr(method, "in_form"):
        formed: Method = method.in_form(chat_template)
        return formed
    if chat_template:
        logger.warning(
            "%s is trained on plain prompts, and asked through the chat template: it has no setting for that",
            method.name,
        )
    return method
