"""What was edited on which model: reports to read, and the state of the edits in force.

The records belong to the model: they are found by the object, and go when it goes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from corsa_plugins.alphaedit import EditState
    from corsa_plugins.data.requests import EditRequest

__all__ = ["AppliedEdit", "EditRecord", "copied", "edit_report", "has_record", "record_of", "reset"]


@dataclass(frozen=True)
class AppliedEdit:
    """One call of a method: one request for ``BaseEditor.edit``, a batch for ``batch_edit``.

    Attributes:
        alg_name: The method.
        requests: As they were edited.
        report: What came of it, request by request: ``report.requests`` of a
            :class:`corsa_plugins.alphaedit.EditReport` and of a :class:`easyedit_ext.locft.TaughtRequests`,
            ``report.samples`` of a :class:`corsa_plugins.rsft.RSFTReport`.
        statistics: Which statistics of the preserved keys were used, in words; ``None`` for methods that use none.
    """

    alg_name: str
    requests: tuple[EditRequest, ...]
    report: Any
    statistics: str | None = None

    def __str__(self) -> str:
        """A line, and one for each request."""
        lines = [f"{self.alg_name}: {self.report}"]
        if self.statistics:
            lines.append(f"  statistics: {self.statistics}")
        details = self.report.samples if hasattr(self.report, "samples") else self.report.requests
        for request, one in zip(self.requests, details, strict=True):
            lines.append(f"  {request.prompt!r} -> {request.target_new!r}: {_verdict(one)}")
        return "\n".join(lines)


def _verdict(one: Any) -> str:
    if hasattr(one, "verdict"):
        return str(one.verdict)
    if hasattr(one, "taken"):
        return f"{'learned' if one.taken else 'not learned'}; log p {one.log_prob_new:.3g} in the end"
    reached = "got under the threshold" if one.reached else "never got under the threshold"
    return f"{reached} in {sum(one.steps)} steps; loss {one.final_loss:.3g} in the end"


@dataclass
class EditRecord:
    """What is known of the edits on one model.

    Attributes:
        edits: Every call, in order, also of edits that were taken back since.
        state: The AlphaEdit+ edits in force as of the last call; ``None`` before the first.
        statistics: Key statistics that were loaded, by where they came from.
    """

    edits: list[AppliedEdit] = field(default_factory=list)
    state: EditState | None = None
    statistics: dict[tuple[Any, ...], Any] = field(default_factory=dict)


_records: WeakKeyDictionary[nn.Module, EditRecord] = WeakKeyDictionary()


def record_of(model: nn.Module) -> EditRecord:
    """The record of this model, a new one if there is none."""
    return _records.setdefault(model, EditRecord())


def has_record(model: nn.Module) -> bool:
    """Whether anything is known of this model."""
    return model in _records


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy of a model that has a record of its own, the same up to here."""
    twin = copy.deepcopy(model)
    record = record_of(model)
    _records[twin] = EditRecord(list(record.edits), record.state, dict(record.statistics))
    return twin


def edit_report(model: nn.Module) -> tuple[AppliedEdit, ...]:
    """What was edited on a model, in order, with the report of each request; edits taken back since are there too.

    >>> for edit in edit_report(editor.model): print(edit)  # doctest: +SKIP
    """
    return tuple(_records[model].edits) if model in _records else ()


def reset(model: nn.Module) -> None:
    """Forget every edit of a model: its weights as they are now count as the originals of the next one."""
    _records.pop(model, None)
