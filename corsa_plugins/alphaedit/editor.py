"""The public face of AlphaEdit+ on a model; AlphaEdit is the same editor with its parts off.

Algorithm 1 is in :mod:`~corsa_plugins.alphaedit.algorithm`, a batch's way through the layers in
:mod:`~corsa_plugins.alphaedit.batch`, all or nothing in :mod:`~corsa_plugins.alphaedit.transaction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from corsa_plugins.alphaedit.batch import BatchEdit, EditError
from corsa_plugins.alphaedit.checks import check_edit, check_restraint, editable_maps
from corsa_plugins.alphaedit.diagnosis import Diagnosis
from corsa_plugins.alphaedit.edit_batch import EditBatch
from corsa_plugins.alphaedit.preserved import PreservedKeys, PreservedSpaces
from corsa_plugins.alphaedit.reader import ModelReader
from corsa_plugins.alphaedit.report import EditReport, warn_not_edited, warn_unprotected
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.solver.nullspace import NullSpace
from corsa_plugins.alphaedit.state import EditState, StateError
from corsa_plugins.alphaedit.transaction import EditedWeights
from corsa_plugins.alphaedit.values.search import Values
from corsa_plugins.alphaedit.weights import Factors, Site, holds_finite
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import SettingError
from corsa_plugins.model.architecture import Architecture, LinearMap, find_architecture
from corsa_plugins.model.identity import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AlphaEditor", "EditError", "PreservedKeys"]


class AlphaEditor:
    """Edits facts in a model's weights, in place, a batch at a time; any batch can be taken out again.

    >>> editor = AlphaEditor(model, tokenizer, statistics, AlphaEditSettings(layers=(4, 5, 6, 7, 8)))  # doctest: +SKIP
    >>> report = editor.edit(read_requests("facts.jsonl"))  # doctest: +SKIP
    >>> editor.state.save("edits")  # doctest: +SKIP

    Memory, beside the model: a copy of the edited weights in main memory and one on their device during an edit; for
    each edit in force its key, residual and direction, 2 d_in + d_out numbers a layer; n x n work for n edits in
    force. Nothing of size d_in x d_in is held.

    Args:
        model: A causal language model of transformers, without an adapter, in any precision, on any device.
        tokenizer: Its tokenizer.
        statistics: Of the keys to preserve, made of this model (``corsa stats``). ``None`` serves an editor that
            only takes edits back.
        settings: Which layers, and how.
        state: Edits that are in force already; ``None``: none are, and the weights are the originals. Where the model
            has the originals of ``state``, see :meth:`apply`.
        architecture: Where the model's parts are, if they cannot be found.

    Raises:
        StateError, StatisticsError: State or statistics are of another model.
        SettingError, ArchitectureError: The model has no such layers, or they cannot be edited.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        statistics: PreservedKeys | None,
        settings: AlphaEditSettings,
        *,
        state: EditState | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.statistics = statistics
        self.architecture = architecture or find_architecture(model)
        if self.architecture.model is not model:
            raise SettingError("architecture is of another model than this one: pass find_architecture(model, ...)")
        if statistics is not None:
            statistics.check(model, self.architecture)
        if state is not None:
            state.check_model(model, self.architecture)
        present = state or EditState(Fingerprint.of(model, self.architecture))
        self._preserved = PreservedSpaces(statistics)
        self._weights = EditedWeights(present, editable_maps(self.architecture, present.originals))
        self.settings = settings
        if state is not None:
            state.check(model, self._weights.maps, self.architecture)

    @property
    def settings(self) -> AlphaEditSettings:
        """Which layers the next edit changes, and how; may be replaced between edits.

        Raises:
            SettingError, ArchitectureError: When set: the model has no such layers, or they cannot be edited.
        """
        return self._reader.settings

    @settings.setter
    def settings(self, settings: AlphaEditSettings) -> None:
        maps = self._weights.maps
        own = editable_maps(self.architecture, settings.layers)
        check_restraint(own, settings)
        maps |= own
        self._reader = ModelReader(self.model, self.tokenizer, self.architecture, maps, settings)

    @property
    def state(self) -> EditState:
        """The edits in force, as of the last call; an immutable object that can be saved."""
        return self._weights.state

    def edit(
        self,
        requests: Iterable[EditRequest],
        *,
        name: str | None = None,
        keep: Sequence[Probe] = (),
        answers: bool = True,
        progress: bool = False,
    ) -> EditReport:
        """Make the model answer ``target_new`` to each request, all of them together as one batch.

        ``paraphrases``, ``neighborhood`` and ``portability`` are never looked at. Smoothed targets are chosen on
        ``validation_prompts``, or where a request has none, on its prompt behind the generated contexts; on the prompt
        itself where there are no contexts either.

        Args:
            requests: Each with a subject.
            name: Of the batch, to revert it by; by default a number.
            keep: Probes with answers that should stay, to validate smoothed targets on as well.
            answers: Whether to ask the model for its answers before and after, for the report.
            progress: Show progress bars.

        Returns:
            The report. The batch is in :attr:`state`.

        Raises:
            RequestError: No requests, or some that cannot be edited, all of them named.
            EditError: NaN or infinity, naming the layer or the request.
            StateError: The weights were changed by something else, or there is a batch of this name.
            SettingError: The name is blank, or a setting does not suit this model's keys.
            CorsaError: What the parts raise, for a value vector that diverges, for instance.

            Whatever is raised, weights and state are bit for bit as before.
        """
        requests = tuple(requests)
        self._check(requests, keep)
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise SettingError(f"name is {name!r}: give the batch a name in letters or digits, or None for a number")
        state = self._state_with_layers()
        name = name if name is not None else state.free_name()
        if any(batch.name == name for batch in state.batches):
            raise StateError(f"there is a batch {name!r} already: choose another name")
        with self._weights.intact():
            edit = self._batch_edit(state, requests, keep)
            batch = edit.run(name, answers=answers, progress=progress)
            self._weights.put(edit.state.with_batch(batch))
        warn_unprotected(batch.report)
        warn_not_edited(batch.report, self.settings.reach)
        return batch.report

    def adopt(self, updates: Mapping[Site, Factors], *, name: str | None = None) -> EditBatch:
        """Put changes that were made elsewhere into the weights, as a batch that :meth:`revert` takes out again.

        Nothing is known of the facts in them: later edits do not spare their keys, and there is no report.

        Args:
            updates: By layer for FFN down maps, by the name of the module for others, as products.
            name: Of the batch; by default a number.

        Raises:
            SettingError, ArchitectureError: There is no such layer, or it cannot be edited.
            StateError: The weights were changed by something else, or there is a batch of this name.
            EditError: The changed weights hold NaN or infinity.

            Whatever is raised, weights and state are bit for bit as before.
        """
        self._weights.maps |= editable_maps(self.architecture, updates)
        state = self._weights.known_state().with_layers({layer: self._weights.maps[layer] for layer in updates})
        batch = EditBatch.adopted(name if name is not None else state.free_name(), updates, self.settings)
        state = state.with_batch(batch)
        with self._weights.intact():
            state.write(self._weights.maps)
            for layer in updates:
                if not holds_finite(self._weights.maps[layer]):
                    raise EditError(f"layer {layer}: the changed weight holds NaN or infinity; nothing was changed")
            self._weights.put(state)
        return batch

    def revert(self, name: str) -> None:
        """Take a batch out again; its keys are forgotten, the other batches stay as they are.

        With every batch reverted, in any order, the weights are the originals, bit for bit.

        Raises:
            StateError: There is no such batch, or the weights were changed by something else.
        """
        remaining = self._weights.known_state().without(name)
        with self._weights.intact():
            self._weights.put(remaining)

    def revert_all(self) -> None:
        """Put the original weights back and forget every batch.

        Raises:
            StateError: The weights were changed by something else.
        """
        originals = self._weights.known_state().first(0)
        with self._weights.intact():
            self._weights.put(originals)

    def apply(self) -> None:
        """Put every batch of :attr:`state` into a model that has the originals, or the first few of the batches.

        Raises:
            StateError: The weights are none that the state knows.
        """
        self._weights.apply()

    def null_space(self, layer: int) -> NullSpace:
        """The null space that edits of the layer start from."""
        return self._preserved.null_space(layer, self._weights.maps[layer].d_in, self.settings)

    def edit_space(self, layer: int) -> NullSpace:
        """The same space as the penalty of the settings has it, each direction as long as it is cheap.

        Raises:
            SettingError: The statistics do not do for that penalty.
        """
        return self._preserved.edit_space(layer, self._weights.maps[layer].d_in, self.settings)

    def diagnose(self, requests: Iterable[EditRequest], *, values: bool = False, progress: bool = False) -> Diagnosis:
        """What an edit of the requests would meet at the present weights; nothing is changed.

        Args:
            requests: Each with a subject.
            values: Look for v* too, which takes as long as in an edit: tells which targets are out of reach, and
                the inconsistency |r|.
            progress: Show a progress bar.

        Raises:
            RequestError, StateError: As in :meth:`edit`.
        """
        requests = tuple(requests)
        self._check(requests)
        batch = self._batch_edit(self._weights.known_state(), requests)
        conflicts = batch.conflicts()
        barred = self.settings.layers if self.settings.null_space is not None else ()
        shares = {layer: self.null_space(layer).protected() for layer in barred}
        protected = {layer: share for layer, share in shares.items() if share is not None}
        if not values:
            return Diagnosis(conflicts, protected=protected)
        searched = batch.anchored(progress=progress).values(progress)
        inconsistency = (searched.vectors - searched.initial).norm(dim=0)
        return Diagnosis(conflicts, tuple(searched.probability.tolist()), tuple(inconsistency.tolist()), protected)

    def values(self, requests: Iterable[EditRequest], *, progress: bool = False) -> Values:
        """v* of each request at the last edited layer, at the present weights; nothing is changed.

        Args:
            requests: Each with a subject.
            progress: Show a progress bar.

        Raises:
            RequestError, StateError: As in :meth:`edit`.
        """
        requests = tuple(requests)
        self._check(requests)
        batch = self._batch_edit(self._weights.known_state(), requests)
        return batch.anchored(progress=progress).values(progress)

    def neighbours(self, requests: Iterable[EditRequest]) -> tuple[EditRequest, ...]:
        """The prompts of the requests about other subjects that an edit of them holds; nothing is changed.

        Args:
            requests: Each with a subject.

        Raises:
            RequestError, StateError: As in :meth:`edit`.
        """
        requests = tuple(requests)
        self._check(requests)
        return self._batch_edit(self._weights.known_state(), requests).neighbours

    @contextmanager
    def on_trial(
        self,
        requests: Iterable[EditRequest],
        values: Values | None = None,
        neighbours: tuple[EditRequest, ...] | None = None,
    ) -> Iterator[None]:
        """Within the block the model has the edit of the requests; afterwards, its weights as before, bit for bit.

        Args:
            requests: Each with a subject.
            values: As :meth:`values` gave them for the requests; by default they are looked for.
            neighbours: As :meth:`neighbours` gave them; likewise.

        Raises:
            RequestError, EditError, StateError: As in :meth:`edit`.
        """
        requests = tuple(requests)
        self._check(requests)
        state = self._state_with_layers()
        with self._weights.on_trial():
            batch = replace(self._batch_edit(state, requests), listed=neighbours).anchored()
            if not self.settings.one_at_a_time:
                values = values or batch.values()
            batch.edit_layers(values)
            yield

    def residuals(self, requests: Iterable[EditRequest], position: int, *, progress: bool = False) -> list[float]:
        """|v* - W k| of each request when an edit of all of them, as one batch, comes to a layer.

        The layers before it are edited to find out, and put back: nothing is changed.

        Args:
            requests: Each with a subject.
            position: Of the layer among those of the settings, counted from 1.
            progress: Show a progress bar.

        Raises:
            SettingError: There is no such position.
            RequestError, EditError, StateError: As in :meth:`edit`.
        """
        requests, layers = tuple(requests), self.settings.layers
        self._check(requests)
        if not 1 <= position <= len(layers):
            raise SettingError(
                f"position is {position}: it must be 1 to {len(layers)}, the number of layers that are edited"
            )
        state = self._state_with_layers()
        with self._weights.on_trial():
            batch = self._batch_edit(state, requests).anchored(progress=progress)
            values = batch.values(progress)
            for earlier in range(1, position):
                batch.edit_layer(earlier, values)
            _, missing = batch.missing(position, values)
            norms: list[float] = missing.norm(dim=0).tolist()
        return norms

    def _check(self, requests: Sequence[EditRequest], keep: Sequence[Probe] = ()) -> None:
        check_edit(self.model, self.tokenizer, requests, keep, self.settings)

    def _state_with_layers(self) -> EditState:
        """The edits in force, and the weights of every layer that the settings name as they were before any."""
        maps: dict[Site, LinearMap] = {layer: self._weights.maps[layer] for layer in self.settings.layers}
        return self._weights.known_state().with_layers(maps)

    def _batch_edit(self, state: EditState, requests: tuple[EditRequest, ...], keep: Sequence[Probe] = ()) -> BatchEdit:
        """The requests as a batch that is not edited yet; the first one decides on the contexts."""
        if not state.contexts:
            state = replace(state, contexts=self._reader.contexts())
        return BatchEdit(self._reader, self._preserved, state, requests, keep)
