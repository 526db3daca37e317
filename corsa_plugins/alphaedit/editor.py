"""AlphaEdit+ on a model (papers/alphaedit-plus.md, Algorithm 1); AlphaEdit is the same editor with its parts off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from corsa_plugins.alphaedit.diagnosis import Conflicts, Diagnosis, layer_conflicts
from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.report import EditReport, LayerReport, RequestReport, verdict
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.solver.closed_form import relative_ridge, solve
from corsa_plugins.alphaedit.solver.conflict import prior_weights
from corsa_plugins.alphaedit.solver.nullspace import NullSpace, NullSpaceRule
from corsa_plugins.alphaedit.solver.smoothing import SmoothingChoice, select_smoothing, smoothing
from corsa_plugins.alphaedit.state import EditBatch, EditState, LayerUpdate, StateError, write_weight
from corsa_plugins.alphaedit.values.search import Values, find_values
from corsa_plugins.data.contradictions import check_requests
from corsa_plugins.data.requests import EditRequest, Probe, RequestError
from corsa_plugins.errors import CorsaError, SettingError
from corsa_plugins.model.architecture import Architecture, LinearMap, find_architecture
from corsa_plugins.model.asking import TargetScore, generate_answers, score_targets
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.model.running import adds_output_as_it_is
from corsa_plugins.model.tokenization import encode_prompt, join

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["AlphaEditor", "EditError", "PreservedKeys"]

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 10


class EditError(CorsaError, RuntimeError):
    """An edit that gave NaN or infinity. The weights and the state are as before."""


class PreservedKeys(Protocol):
    """What an editor asks about K0; :class:`~corsa_plugins.alphaedit.KeyStatistics` answers it."""

    def check(self, model: PreTrainedModel, architecture: Architecture | None = None) -> None:
        """Raise unless these are of this model."""

    def null_space(self, layer: int, rule: NullSpaceRule) -> NullSpace:
        """The null space of the preserved keys at a layer."""

    def sample(self, layer: int) -> Tensor | None:
        """Some of the preserved keys (d_in, S) of a layer, if kept."""


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
        self._sites: dict[int, nn.Module | None] = {}
        self._null_spaces: dict[tuple[int, NullSpaceRule], NullSpace] = {}
        if statistics is not None:
            statistics.check(model, self.architecture)
        if state is not None:
            state.check_model(model, self.architecture)
        self._state = state or EditState(Fingerprint.of(model, self.architecture))
        self._maps = self._editable(self._state.originals)
        self.settings = settings
        if state is not None:
            state.check(model, self._maps, self.architecture)

    @property
    def settings(self) -> AlphaEditSettings:
        """Which layers the next edit changes, and how; may be replaced between edits.

        Raises:
            SettingError, ArchitectureError: When set: the model has no such layers, or they cannot be edited.
        """
        return self._settings

    @settings.setter
    def settings(self, settings: AlphaEditSettings) -> None:
        self._maps = {**self._maps, **self._editable(settings.layers)}
        self._settings = settings

    @property
    def state(self) -> EditState:
        """The edits in force, as of the last call; an immutable object that can be saved."""
        return self._state

    # --- what a user does --------------------------------------------------------------------------------------------

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
        state = self._known_state().with_layers({layer: self._maps[layer] for layer in self.settings.layers})
        name = name if name is not None else _free_name(state)
        if any(batch.name == name for batch in state.batches):
            raise StateError(f"there is a batch {name!r} already: choose another name")
        with self._intact():
            if not state.contexts:
                state = replace(state, contexts=self._contexts())
            batch = self._make_batch(state, requests, name, keep, answers, progress)
            # From a copy of everything it is computed from, so that what a later process writes has the same bits.
            after = replace(state, batches=(*state.batches, batch))
            mark = after.write(self._maps)
            # One assignment: an interruption sees the edit made or not made.
            self._state = state.with_batch(batch, mark)
        # Of targets out of reach there has been a warning while their values were looked for.
        missed = [r for r in batch.report.not_edited if r.value_probability >= self.settings.reach]
        for request in missed[:_MAX_WARNINGS]:
            logger.warning("%s: %s", request.name, request.verdict)
        if len(missed) > _MAX_WARNINGS:
            logger.warning("... nor were %d more requests taken; see the report", len(missed) - _MAX_WARNINGS)
        return batch.report

    def revert(self, name: str) -> None:
        """Take a batch out again; its keys are forgotten, the other batches stay as they are.

        With every batch reverted, in any order, the weights are the originals, bit for bit.

        Raises:
            StateError: There is no such batch, or the weights were changed by something else.
        """
        state = self._known_state()
        place = state.batches.index(state.batch(name))
        remaining = replace(state, batches=state.batches[:place] + state.batches[place + 1 :])
        with self._intact():
            mark = remaining.write(self._maps)
            self._state = state.without(name, mark)

    def revert_all(self) -> None:
        """Put the original weights back and forget every batch."""
        state = self._known_state()
        with self._intact():
            state.first(0).write(self._maps)
            self._state = state.first(0)

    def apply(self) -> None:
        """Put every batch of :attr:`state` into a model that has the originals, or the first few of the batches.

        Raises:
            StateError: The weights are none that the state knows.
        """
        if self._in_force(self._state) == len(self._state.batches):
            return
        with self._intact():
            # On another machine the same sum may round to other bits.
            self._state = self._state.with_mark(self._state.write(self._maps))

    def null_space(self, layer: int) -> NullSpace:
        """The null space that edits of the layer start from."""
        key = (layer, self.settings.null_space)
        if key not in self._null_spaces:
            space = self._preserved().null_space(*key)
            if space.d != self._maps[layer].d_in:
                raise SettingError(
                    f"layer {layer}: the statistics are {space.d} wide, and the keys {self._maps[layer].d_in}"
                )
            if self.settings.search and not space.ordered:
                logger.warning(
                    "layer %d: the null space was given as a projector, which does not say in what order eigenvectors "
                    "could be added to it: none will be",
                    layer,
                )
            self._null_spaces[key] = space
        return self._null_spaces[key]

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
        self._check(requests, ())
        state = self._known_state()
        contexts = state.contexts or self._contexts()
        conflicts = self._conflicts(state, requests, self._keys(requests, self.settings.layers, contexts))
        if not values:
            return Diagnosis(conflicts)
        found = self._values(requests, contexts, progress)
        inconsistency = (found.vectors - found.initial).norm(dim=0)
        return Diagnosis(conflicts, tuple(found.probability.tolist()), tuple(inconsistency.tolist()))

    def residuals(self, requests: Iterable[EditRequest], place: int, *, progress: bool = False) -> list[float]:
        """|v* - W k| of each request when an edit of all of them, as one batch, comes to its ``place``-th layer.

        The layers before it are edited to find out, and put back: nothing is changed.

        Args:
            requests: Each with a subject.
            place: Of the layer among those of the settings, counted from 1.
            progress: Show a progress bar.

        Raises:
            SettingError: There is no such place.
            RequestError, EditError, StateError: As in :meth:`edit`.
        """
        requests, layers = tuple(requests), self.settings.layers
        self._check(requests, ())
        if not 1 <= place <= len(layers):
            raise SettingError(f"place is {place}: it must be 1 to {len(layers)}, the number of layers that are edited")
        state = self._known_state().with_layers({layer: self._maps[layer] for layer in layers})
        weights = {layer: self._maps[layer].weight.detach().clone() for layer in layers[: place - 1]}
        with self._intact():
            if not state.contexts:
                state = replace(state, contexts=self._contexts())
            values = self._values(requests, state.contexts, progress)
            for before in range(place - 1):
                self._edit_layer(state, requests, before, values, ())
            _, missing = self._missing(state, requests, layers[place - 1], values)
            self._put_back(weights)
        found: list[float] = missing.norm(dim=0).tolist()
        return found

    # --- one batch ---------------------------------------------------------------------------------------------------

    def _make_batch(
        self,
        state: EditState,
        requests: tuple[EditRequest, ...],
        name: str,
        keep: Sequence[Probe],
        answers: bool,
        progress: bool,
    ) -> EditBatch:
        layers = self.settings.layers
        values = self._values(requests, state.contexts, progress)  # first: it refuses what the model cannot read
        before = self._ask(requests, answers)
        conflicts = self._conflicts(state, requests, self._keys(requests, layers, state.contexts))
        solved = [self._edit_layer(state, requests, place, values, keep) for place in range(len(layers))]
        left = solved[-1].wanted - self._outputs(requests, layers[-1])
        keys = self._keys(requests, layers, state.contexts)
        self._finite(layers[-1], "outputs after the edit", left, requests)
        for layer in layers:
            self._finite(layer, "keys after the edit", keys[layer], requests)
        after = self._ask(requests, answers)
        reports = []
        for index, request in enumerate(requests):
            report = RequestReport(
                index=index,
                name=request.name(index),
                prompt=request.prompt,
                target_new=request.target_new,
                value_probability=float(values.probability[index]),
                **vars(conflicts.of(index)),
                inconsistency=float((values.vectors - values.initial)[:, index].norm()),
                smoothing=tuple(float(layer.smoothing[index]) for layer in solved),
                residual=float(left[:, index].norm()),
                answer_before=before.answers[index],
                answer_after=after.answers[index],
                known_before=before.scores[index].top1,
                edited=after.scores[index].top1,
                verdict="",
            )
            reports.append(replace(report, verdict=verdict(report, self.settings.reach)))
        return EditBatch(
            name=name,
            requests=requests,
            layers={
                layer: LayerUpdate(self._stored(keys[layer]), part.left, part.right)
                for layer, part in zip(layers, solved, strict=True)
            },
            settings=self.settings,
            report=EditReport(name, tuple(reports), tuple(part.report for part in solved)),
        )

    def _edit_layer(
        self, state: EditState, requests: Sequence[EditRequest], place: int, values: Values, keep: Sequence[Probe]
    ) -> _SolvedLayer:
        """Algorithm 1 at one layer; its weight holds the update afterwards."""
        settings, layer = self.settings, self.settings.layers[place]
        linear, space = self._maps[layer], self.null_space(layer)
        keys = self._keys(requests, [layer], state.contexts)[layer]
        wanted, inconsistency = self._missing(state, requests, layer, values)
        residual = inconsistency / (len(settings.layers) - place)
        self._finite(layer, "keys", keys, requests)
        self._finite(layer, "residuals", residual, requests)

        new = space.coordinates(keys)
        prior_keys = state.prior_keys(layer, linear.d_in).to(keys.device)
        weights = (
            prior_weights(prior_keys, keys) if settings.conflict_weights else prior_keys.new_ones(prior_keys.shape[1])
        )
        beta = settings.prior_weight * (place + 1 if settings.prior_weight_by_layer else 1)
        prior = space.coordinates(prior_keys) * (beta * weights.double()).sqrt()
        ridge = settings.ridge
        if settings.ridge_unit == "relative":
            ridge = relative_ridge(settings.ridge, new, space.n_null)

        norms = inconsistency.norm(dim=0)

        def smoothed(t: int) -> Tensor:
            return torch.zeros_like(norms) if settings.smoothing is None else smoothing(norms, t, settings.smoothing)

        solution = solve(
            new,
            prior,
            residual * (1 - smoothed(0)),
            ridge=ridge,
            n_null=space.n_null,
            search=settings.search if space.ordered else None,
        )
        right = self._stored(space.combine(solution.coefficients))
        updates = state.updates(layer)

        def put(t: int) -> Tensor:
            left = self._stored(residual * (1 - smoothed(t)))
            write_weight(linear, state.originals[layer], [*updates, LayerUpdate(left, left, right)])
            if not linear.weight.isfinite().all():
                raise EditError(
                    f"layer {layer}: the edited weight holds NaN or infinity in {linear.weight.dtype}; lower the "
                    "values' clamp, raise the ridge, or load the model in a wider precision; nothing was changed"
                )
            return left

        choice: SmoothingChoice | None = None
        if settings.smoothing is not None and bool(smoothed(0).any()):
            pairs = self._validation(state, requests, keep)

            def score(t: int) -> float:
                put(t)
                return self._score(pairs)

            choice = select_smoothing(score, settings.smoothing)
        t = choice.t if choice else 0
        left = put(t)
        self._finite(layer, "update", left.abs().sum(0) + right.abs().sum(0), requests)
        return _SolvedLayer(
            wanted=wanted,
            left=left,
            right=right,
            smoothing=smoothed(t),
            report=LayerReport(
                layer=layer,
                width=linear.d_in,
                null_space=space.n_null,
                added=solution.added,
                ridge=ridge,
                objective=(solution.objective[0], solution.objective[-1]),
                prior_weight=float(weights.mean()) if len(weights) else None,
                smoothing_step=choice.t if choice else None,
                validation_scores=tuple(choice.scores) if choice else (),
            ),
        )

    def _missing(
        self, state: EditState, requests: Sequence[EditRequest], layer: int, values: Values
    ) -> tuple[Tensor, Tensor]:
        """v* for a layer and what is missing to it at the present weights, v* - W k; both (d_out, N)."""
        wanted = values.vectors
        if self._site(layer) is not None and len(self.settings.layers) > 1:
            # What this FFN puts out is not a term of what the last block does: it gets a target of its own.
            wanted = self._values(requests, state.contexts, False, layer).vectors
        return wanted, (wanted - self._outputs(requests, self._target_layer(layer))).double()

    # --- parts -------------------------------------------------------------------------------------------------------

    def _editable(self, layers: Iterable[int]) -> dict[int, LinearMap]:
        maps = {layer: _editable(self.architecture, layer) for layer in layers}
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for linear in maps.values():
            shared: Any = linear.module.weight
            if len(names.get(id(shared), [])) > 1:
                raise SettingError(
                    f"{' and '.join(names[id(shared)])} are one weight: an edit of one would be an edit of all; give "
                    "each a copy of its own first"
                )
        return maps

    def _preserved(self) -> PreservedKeys:
        if self.statistics is None:
            raise SettingError("this editor has no statistics of the keys to preserve: give them to edit with it")
        return self.statistics

    def _check(self, requests: Sequence[EditRequest], keep: Sequence[Probe]) -> None:
        if not requests:
            raise RequestError("there are no edit requests: give at least one")
        problems = [
            f"{request.name(i)}: has no subject, and its key is read at the last token of one: add the field"
            for i, request in enumerate(requests)
            if not request.subject
        ]
        if problems:
            raise RequestError(problems, f"{len(problems)} edit requests cannot be edited")
        for i, probe in enumerate(keep):
            if probe.answer is None:
                raise RequestError(f"keep[{i}] ({probe.prompt!r}) has no answer: give the one that should stay")
        self._check_lengths(requests, keep)
        for conflict in check_requests(requests).contradictions:
            logger.warning(
                "requests %s contradict each other: the prompt %r is given %s; the edit lands between them",
                ", ".join(map(str, conflict.indices)),
                conflict.prompt,
                " and ".join(map(repr, conflict.targets)),
            )

    def _check_lengths(self, requests: Sequence[EditRequest], keep: Sequence[Probe]) -> None:
        """Of what is validated on; value vectors look at the edit prompts."""
        reads = self._reads()
        if reads is None or self.settings.smoothing is None:
            return
        asked = [(r.name(i), p, r.target_new) for i, r in enumerate(requests) for p in r.validation_prompts]
        asked += [(f"keep[{i}]", probe.prompt, str(probe.answer)) for i, probe in enumerate(keep)]
        problems = []
        for name, prompt, answer in asked:
            length = sum(map(len, join(self.tokenizer, prompt, answer)))
            if length > reads:
                problems.append(
                    f"{name}: {length} tokens to validate on, and the model reads {reads}: shorten {prompt!r}"
                )
        if problems:
            raise RequestError(problems, f"{len(problems)} prompts to validate on are too long")

    def _reads(self) -> int | None:
        """How many tokens the model reads at most, if it says so."""
        config: Any = self.model.config
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def _contexts(self) -> tuple[str, ...]:
        return generate_contexts(
            self.model,
            self.tokenizer,
            n=self.settings.n_contexts,
            length=self.settings.context_length,
            architecture=self.architecture,
        )

    def _site(self, layer: int) -> nn.Module | None:
        """Where values of a layer live: ``None`` for what the block puts out, or the down map itself.

        Values are those of the block where it adds what the FFN puts out, as all the papers' models do. Where a norm or
        a scale comes between, an update of the weights would be undone in part: values are then the down map's own.
        """
        if layer not in self._sites:
            plain = adds_output_as_it_is(self.architecture, layer)
            self._sites[layer] = None if plain else self._maps[layer].module
        return self._sites[layer]

    def _target_layer(self, layer: int) -> int:
        """The layer whose values tell the residual of ``layer``: the last edited one, or the layer itself."""
        return self.settings.layers[-1] if self._site(layer) is None else layer

    def _values(
        self, requests: Sequence[EditRequest], contexts: Sequence[str], progress: bool, layer: int | None = None
    ) -> Values:
        layer = self.settings.layers[-1] if layer is None else layer
        return find_values(
            self.model,
            self.tokenizer,
            requests,
            layer,
            contexts,
            self.settings.values,
            progress=progress,
            architecture=self.architecture,
            site=self._site(layer),
        )

    def _conflicts(self, state: EditState, requests: Sequence[EditRequest], keys: Mapping[int, Tensor]) -> Conflicts:
        found = []
        for layer in self.settings.layers:
            prior = state.prior_names(layer)
            prior_keys = state.prior_keys(layer, self._maps[layer].d_in)
            sample = self._preserved().sample(layer)
            found.append(layer_conflicts(layer, keys[layer], self.null_space(layer), sample, prior_keys, prior))
        return Conflicts(tuple(request.name(i) for i, request in enumerate(requests)), tuple(found))

    def _keys(
        self, requests: Sequence[EditRequest], layers: Sequence[int], contexts: Sequence[str]
    ) -> dict[int, Tensor]:
        return request_keys(
            self.model,
            self.tokenizer,
            requests,
            layers,
            contexts,
            fact_token=self.settings.values.fact_token,
            batch_size=self.settings.batch_size,
            architecture=self.architecture,
        )

    def _outputs(self, requests: Sequence[EditRequest], layer: int) -> Tensor:
        return request_outputs(
            self.model,
            self.tokenizer,
            requests,
            layer,
            fact_token=self.settings.values.fact_token,
            batch_size=self.settings.batch_size,
            architecture=self.architecture,
            site=self._site(layer),
        )

    def _stored(self, tensor: Tensor) -> Tensor:
        """As it is kept: what is written into the weights is made of these very numbers."""
        dtype = self.settings.dtype
        if dtype is None:
            dtype = "float64" if self._maps[self.settings.layers[0]].weight.dtype == torch.float64 else "float32"
        return tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()

    def _finite(self, layer: int, what: str, columns: Tensor, requests: Sequence[EditRequest]) -> None:
        bad = (~torch.isfinite(columns)).reshape(-1, len(requests)).any(0).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(requests[i].name(i) for i in bad[:3])
            raise EditError(
                f"layer {layer}: NaN or infinity in the {what} of {names}{' and others' if len(bad) > 3 else ''}; "
                "look for NaN in the model's weights, or load it in a wider precision; nothing was changed"
            )

    def _validation(
        self, state: EditState, requests: Sequence[EditRequest], keep: Sequence[Probe]
    ) -> list[tuple[str, str]]:
        """(prompt, answer) pairs to choose smoothed targets on, none of them a test prompt."""
        pairs = []
        for request in requests:
            prompts = request.validation_prompts or [c.replace("{}", request.prompt) for c in state.contexts[1:]]
            pairs += [(prompt, request.target_new) for prompt in prompts or [request.prompt]]
        return pairs + [(probe.prompt, str(probe.answer)) for probe in keep]

    def _score(self, pairs: list[tuple[str, str]]) -> float:
        scores = score_targets(self.model, self.tokenizer, pairs, batch_size=self.settings.batch_size)
        if self.settings.validation_score == "accuracy":
            return sum(score.top1 for score in scores) / len(scores)
        return float(torch.tensor([score.log_prob / score.n_tokens for score in scores]).double().exp().mean())

    def _ask(self, requests: Sequence[EditRequest], answers: bool) -> _Asked:
        pairs = [(request.prompt, request.target_new) for request in requests]
        scores = score_targets(self.model, self.tokenizer, pairs, batch_size=self.settings.batch_size)
        said: list[str | None] = [None] * len(requests)
        if answers:
            prompts = [request.prompt for request in requests]
            length = max(score.n_tokens for score in scores) + 4
            if (reads := self._reads()) is not None:
                length = min(length, reads - max(len(encode_prompt(self.tokenizer, prompt)) for prompt in prompts))
            generated = generate_answers(
                self.model, self.tokenizer, prompts, max_new_tokens=max(1, length), batch_size=self.settings.batch_size
            )
            said = [answer.text for answer in generated]
        return _Asked(scores, said)

    # --- state and weights -------------------------------------------------------------------------------------------

    def _in_force(self, state: EditState) -> int:
        count = state.in_force(self._maps)
        if count is None:
            names = ", ".join(state.modules.values())
            raise StateError(
                f"the weights of {names} are neither what the last edit left nor what they were before one: something "
                "else changed them. Put them back, or start a new state, which takes them as the originals"
            )
        return count

    def _known_state(self) -> EditState:
        """The state, without edits that someone has taken back by restoring the weights."""
        count = self._in_force(self._state)
        if count < len(self._state.batches):
            names = ", ".join(batch.name for batch in self._state.batches[count:])
            logger.warning(
                "the weights are those from before the batches %s: they are forgotten (apply() puts them back)", names
            )
            self._state = self._state.first(count)
        return self._state

    @contextmanager
    def _intact(self) -> Iterator[None]:
        """Within the block: whatever is raised before the state is replaced, the edited weights are put back."""
        state = self._state
        weights = {layer: place.weight.detach().clone() for layer, place in self._maps.items()}
        try:
            yield
        except BaseException:
            if self._state is state:
                _persist(lambda: self._put_back(weights))
            raise

    @torch.no_grad()
    def _put_back(self, weights: Mapping[int, Tensor]) -> None:
        for layer, weight in weights.items():
            self._maps[layer].weight.copy_(weight)


@dataclass(frozen=True)
class _SolvedLayer:
    wanted: Tensor
    left: Tensor
    right: Tensor
    smoothing: Tensor
    report: LayerReport


@dataclass(frozen=True)
class _Asked:
    scores: list[TargetScore]
    answers: list[str | None]


def _editable(architecture: Architecture, layer: int) -> LinearMap:
    linear = architecture.ffn(layer).down
    weight = linear.weight
    if not weight.is_floating_point() or tuple(weight.shape) != (linear.d_out, linear.d_in):
        raise SettingError(
            f"{linear.name} is stored as {weight.dtype} of shape {tuple(weight.shape)}: a quantised weight cannot be "
            "edited; load the model in bfloat16 or float32"
        )
    if weight.is_meta:
        raise SettingError(f"{linear.name} is offloaded: load the model so that it fits, or on the CPU")
    return linear


def _free_name(state: EditState) -> str:
    taken = {batch.name for batch in state.batches}
    number = len(state.batches) + 1
    while str(number) in taken:
        number += 1
    return str(number)


def _persist(action: Callable[[], None]) -> None:
    """Do it to the end, whoever presses Ctrl-C meanwhile."""
    while True:
        try:
            return action()
        except KeyboardInterrupt:
            continue
