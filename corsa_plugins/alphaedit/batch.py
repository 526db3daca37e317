"""One batch of requests on its way into the weights: Algorithm 1 at each edited layer in turn, and the report of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from corsa_plugins.alphaedit.algorithm import LayerProblem, Update, algorithm_1
from corsa_plugins.alphaedit.answers import Answers, ask, validation_pairs, validation_score
from corsa_plugins.alphaedit.conflicts import Conflicts, request_conflicts
from corsa_plugins.alphaedit.edited_layer import EditedLayer, joined_layers, joined_updates, layer_report
from corsa_plugins.alphaedit.lookup.wider import of_neighbours, of_subjects
from corsa_plugins.alphaedit.preserved import PreservedSpaces
from corsa_plugins.alphaedit.reader import ModelReader
from corsa_plugins.alphaedit.report import EditReport, RequestReport, verdict
from corsa_plugins.alphaedit.solver.nullspace import NullSpace
from corsa_plugins.alphaedit.state import EditBatch, EditState
from corsa_plugins.alphaedit.values.anchor import reference_norm
from corsa_plugins.alphaedit.values.search import Values, joined
from corsa_plugins.alphaedit.weights import LayerUpdate, holds_finite, put_back, take
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.errors import CorsaError

__all__ = ["BatchEdit", "EditError"]

logger = logging.getLogger(__name__)

_FEW_NORMS = 10
"""A reference norm of fewer values than this is hardly one."""


class EditError(CorsaError, RuntimeError):
    """An edit that gave NaN or infinity. The weights and the state are as before."""


@dataclass(frozen=True)
class BatchEdit:
    """Requests to edit together.

    Attributes:
        reader: Of the model they are edited in; its settings say how.
        preserved: The keys to spare.
        state: The edits in force; it knows the layers of the settings, and has contexts.
        requests: Checked.
        keep: Probes with answers that should stay, to validate smoothed targets on as well.
        made: By layer, updates of the same batch that are in the weights and not in the state yet.
        listed: :attr:`neighbours`, where they are known.
        searched: What :meth:`ModelReader.found` gives at the weights as they are for the first layer that has values,
            where that is known.
    """

    reader: ModelReader
    preserved: PreservedSpaces
    state: EditState
    requests: tuple[EditRequest, ...]
    keep: Sequence[Probe] = ()
    made: Mapping[int, tuple[Update, ...]] = field(default_factory=dict)
    listed: tuple[EditRequest, ...] | None = None
    searched: Values | None = None

    def run(self, name: str, *, answers: bool = True, progress: bool = False) -> EditBatch:
        """Edit every layer; the weights hold the edit afterwards.

        Args:
            name: Of the batch.
            answers: Whether to let the model answer in its own words before and after, for the report.
            progress: Show a progress bar.

        Raises:
            EditError: NaN or infinity, naming the layer or the request.
            CorsaError: What the parts raise.
        """
        for layer in self.reader.settings.layers:
            self._edit_space(layer)  # refuses statistics that do not do, before the work begins
        return self.anchored(progress=progress)._run(name, answers, progress)

    def _run(self, name: str, answers: bool, progress: bool) -> EditBatch:
        layers, contexts = self.reader.settings.layers, self.state.contexts
        one_by_one = self.reader.settings.one_at_a_time
        values = None if one_by_one else self.values(progress)  # refuses what the model cannot read
        before = self._ask(answers)
        conflicts = self.conflicts()
        values, edited = self.edit_layers(values)
        missing = edited[-1].targets - self.reader.outputs(self.requests, layers[-1])
        keys = self.reader.keys(self.requests, contexts)
        self._refuse_non_finite(layers[-1], "outputs after the edit", missing)
        for layer in layers:
            self._refuse_non_finite(layer, "keys after the edit", keys[layer])
        after = self._ask(answers)
        return EditBatch(
            name=name,
            requests=self.requests,
            layers={
                layer: LayerUpdate(self._kept(keys[layer]), *part.update)
                for layer, part in zip(layers, edited, strict=True)
            },
            settings=self.reader.settings,
            report=EditReport(
                name,
                tuple(
                    self._report(index, values, conflicts, edited, missing, before, after)
                    for index in range(len(self.requests))
                ),
                tuple(part.report for part in edited),
            ),
            anchors=self.reader.anchors,
        )

    def anchored(self, *, progress: bool = False) -> BatchEdit:
        """The same, going by the norms that values are to have; where the settings ask for none, as it is.

        The norm of a layer is what the settings say, or what the edits in force went by. Where that is not known it is
        the mean over the values of these requests, found at the weights from before any edit, which are put in for the
        time being.
        """
        rule, reader = self.reader.settings.norm_anchor, self.reader
        if rule is None:
            return self
        known = {layer: rule.norm or self.state.anchor(layer) for layer in reader.value_layers}
        norms = {layer: norm for layer, norm in known.items() if norm is not None}
        missing = [layer for layer in known if layer not in norms]
        if missing and len(self.requests) < _FEW_NORMS:
            logger.warning(
                "the reference norm is the mean over %d value vectors alone, where NAS takes 1,000: begin with a "
                "larger batch, or set norm_anchor.norm",
                len(self.requests),
            )
        searched = {}
        if missing:
            with self._without_edits():
                for layer in missing:
                    found = reader.found(self.requests, self.state.contexts, layer, progress=progress)
                    own = reader.ffn_outputs(self.requests, layer, found) + (found.vectors - found.initial)
                    self._refuse_non_finite(layer, "value vectors", own)
                    norms[layer] = reference_norm(own.norm(dim=0), rule.drop)
                    searched[layer] = found
        again = not self.state.batches and not reader.settings.one_at_a_time
        return replace(
            self,
            reader=replace(reader, anchors=norms),
            searched=searched.get(reader.value_layers[0]) if again else None,
        )

    def values(self, progress: bool = False) -> Values:
        """v* of all requests at the first of the value layers, at the weights as they are."""
        if self.searched is not None:
            return self.reader.anchored(self.requests, self.reader.value_layers[0], self.searched)
        return self.reader.values(self.requests, self.state.contexts, progress=progress)

    @contextmanager
    def _without_edits(self) -> Iterator[None]:
        """Within the block the weights are those from before any edit."""
        maps = self.reader.maps
        held = {layer: take(maps[layer]) for layer in self.state.originals} if self.state.batches else {}
        try:
            if held:
                self.state.first(0).write(maps)
            yield
        finally:
            for layer, weight in held.items():
                put_back(maps[layer], weight)

    def conflicts(self) -> Conflicts:
        """Of the requests at every edited layer, at the present weights."""
        names = [request.name(index) for index, request in enumerate(self.requests)]
        keys = self.reader.keys(self.requests, self.state.contexts)
        experts = {layer: self.reader.maps[layer].experts for layer in keys}
        return request_conflicts(names, keys, self._null_space, self.preserved.sample, self.state, experts)

    def edit_layers(self, values: Values | None) -> tuple[Values, list[EditedLayer]]:
        """Every layer, which holds its update afterwards; one request after the other, if the settings say so.

        Args:
            values: Of the last edited layer, all requests; ``None`` where each request gets its own on the way.

        Returns:
            The values that the edit went by, and what became of each layer.
        """
        positions = range(1, len(self.reader.settings.layers) + 1)
        if values is not None:
            return values, [self.edit_layer(position, values) for position in positions]
        one, parts = self, []
        for request in self.requests:
            one = replace(one, requests=(request,))
            found = one.reader.values(one.requests, self.state.contexts)
            edited = [one.edit_layer(position, found) for position in positions]
            parts.append((found, edited))
            made = zip(self.reader.settings.layers, edited, strict=True)
            one = replace(one, made={layer: (*one.made.get(layer, ()), part.update) for layer, part in made})
        layers = zip(*(edited for _, edited in parts), strict=True)
        return joined([found for found, _ in parts]), [joined_layers(layer) for layer in layers]

    def edit_layer(self, position: int, values: Values) -> EditedLayer:
        """Algorithm 1 at one layer; its weight holds the update afterwards.

        Args:
            position: Of the layer among the edited ones, counted from 1.
            values: Of the last edited layer.
        """
        layer = self.reader.settings.layers[position - 1]
        targets, inconsistency = self.missing(position, values)
        problem = self._problem(position, inconsistency)
        edit = algorithm_1(problem, self.reader.settings, lambda update: self._validate(layer, update))
        kept = self._write(layer, edit.update)
        self._refuse_non_finite(layer, "update", kept.left.abs().sum(0) + kept.right.abs().sum(0))
        barred = self.reader.settings.null_space is not None or self.reader.settings.penalty == "weights"
        experts = self.reader.maps[layer].experts
        report = layer_report(layer, problem, edit, self._null_space(layer) if barred else None, experts)
        return EditedLayer(targets, kept, edit.smoothing, report)

    def missing(self, position: int, values: Values) -> tuple[Tensor, Tensor]:
        """The targets V1 that an edit of the layer goes by, and V1 - W K1 at the present weights; both (d_out, N).

        Nothing is missing of a request that the norm anchor leaves out, until another's update at an earlier layer
        moves it from where it is to stay.
        """
        layer = self.reader.settings.layers[position - 1]
        targets = self.reader.targets(self.requests, self.state.contexts, layer, values)
        missing = (targets - self.reader.outputs(self.requests, layer)).double()
        if values.scale is not None:
            left_out = (values.scale == 0).to(missing.device)
            if position == 1 or bool(left_out.all()):  # nothing has moved, and two passes may round differently
                missing[:, left_out] = 0.0
        return targets, missing

    @cached_property
    def neighbours(self) -> tuple[EditRequest, ...]:
        """The prompts about other subjects, none of them edited now or earlier, whose keys keep their outputs."""
        settings = self.reader.settings.neighbours
        if settings is None:
            return ()
        if self.listed is not None:
            return self.listed
        earlier = [request.subject or "" for batch in self.state.batches for request in batch.requests]
        return of_neighbours(self.reader.model, self.reader.tokenizer, self.requests, settings, earlier)

    def _further_keys(self, layer: int) -> list[Tensor]:
        """Of the requests' subjects with nothing before them: bare, and in the contexts."""
        if not self.reader.settings.subject_keys:
            return []
        subjects, contexts = of_subjects(self.requests), self.state.contexts
        bare = self.reader.keys(subjects, contexts[:1], [layer])[layer]
        if len(contexts) == 1:
            return [bare]
        both = self.reader.keys(subjects, contexts, [layer])[layer]  # half of it is the bare one's
        return [bare, 2 * both - bare]

    def _held_keys(self, layer: int) -> Tensor | None:
        settings = self.reader.settings
        if settings.neighbours is None or not self.neighbours:
            return None
        forms = [self.neighbours, *([of_subjects(self.neighbours)] if settings.subject_keys else [])]
        keys = torch.cat([self.reader.keys(form, self.state.contexts[:1], [layer])[layer] for form in forms], dim=1)
        return keys * settings.neighbours.weight**0.5

    def _problem(self, position: int, inconsistency: Tensor) -> LayerProblem:
        layers = self.reader.settings.layers
        layer = layers[position - 1]
        keys = self.reader.keys(self.requests, self.state.contexts, [layer])[layer]
        self._refuse_non_finite(layer, "keys", keys)
        self._refuse_non_finite(layer, "residuals", inconsistency)
        return LayerProblem(
            keys=keys,
            inconsistency=inconsistency,
            prior_keys=self.state.prior_keys(layer, keys.shape[0]).to(keys.device),
            space=self._edit_space(layer),
            position=position,
            n_layers=len(layers),
            further_keys=self._further_keys(layer),
            held_keys=self._held_keys(layer),
        )

    def _validate(self, layer: int, update: Update) -> float:
        """val_score of an update (line 18), with the update in the weight."""
        self._write(layer, update)
        pairs = validation_pairs(self.requests, self.state.contexts, self.keep)
        return validation_score(self.reader.model, self.reader.tokenizer, pairs, self.reader.settings)

    def _write(self, layer: int, update: Update) -> Update:
        """Put an update into the weight, on top of the earlier ones; returns it as it is kept."""
        linear = self.reader.maps[layer]
        kept = Update(self._kept(update.left), self._kept(update.right))
        batch = joined_updates([*self.made.get(layer, ()), kept])
        self.state.write_layer(layer, linear, batch, self.reader.settings.restraint)
        if not holds_finite(linear):
            raise EditError(
                f"layer {layer}: the edited weight holds NaN or infinity in {self.reader.model.dtype}; lower the "
                "values' clamp, raise the ridge, or load the model in a wider precision; nothing was changed"
            )
        return kept

    def _kept(self, tensor: Tensor) -> Tensor:
        """As it is kept: what is written into the weights is made of these very numbers."""
        dtype = self.reader.settings.dtype
        if dtype is None:
            linear = self.reader.maps[self.reader.settings.layers[0]]
            exact = not linear.quantised and linear.parameter.dtype == torch.float64
            dtype = "float64" if exact else "float32"
        return tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()

    def _null_space(self, layer: int) -> NullSpace:
        return self.preserved.null_space(layer, self.reader.maps[layer].d_in, self.reader.settings)

    def _edit_space(self, layer: int) -> NullSpace:
        return self.preserved.edit_space(layer, self.reader.maps[layer].d_in, self.reader.settings)

    def _ask(self, texts: bool) -> Answers:
        reader = self.reader
        return ask(reader.model, reader.tokenizer, self.requests, reader.settings, texts=texts)

    def _refuse_non_finite(self, layer: int, what: str, columns: Tensor) -> None:
        """``columns`` has a column, or an element, for each request."""
        bad = (~torch.isfinite(columns)).reshape(-1, len(self.requests)).any(0).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(self.requests[i].name(i) for i in bad[:3])
            raise EditError(
                f"layer {layer}: NaN or infinity in the {what} of {names}{' and others' if len(bad) > 3 else ''}; "
                "look for NaN in the model's weights, or load it in a wider precision; nothing was changed"
            )

    def _report(
        self,
        index: int,
        values: Values,
        conflicts: Conflicts,
        edited: Sequence[EditedLayer],
        missing: Tensor,
        before: Answers,
        after: Answers,
    ) -> RequestReport:
        request = self.requests[index]
        report = RequestReport(
            index=index,
            name=request.name(index),
            prompt=request.prompt,
            target_new=request.target_new,
            value_probability=float(values.probability[index]),
            **vars(conflicts.of(index)),
            inconsistency=float((values.vectors - values.initial)[:, index].norm()),
            smoothing=tuple(float(layer.smoothing[index]) for layer in edited),
            value_scale=None if values.scale is None else float(values.scale[index]),
            residual=float(missing[:, index].norm()),
            answer_before=before.texts[index],
            answer_after=after.texts[index],
            known_before=before.scores[index].top1,
            edited=after.scores[index].top1,
            verdict="",
        )
        return replace(report, verdict=verdict(report, self.reader.settings.reach))
