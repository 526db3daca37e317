"""The loss of value vectors for a batch of requests: likelihood of the targets, KL, weight decay."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsa_plugins.alphaedit.lookup.rows import Row
from corsa_plugins.alphaedit.values.prefix import ReadPrefix
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.model.architecture import Architecture
from corsa_plugins.model.batching import pad
from corsa_plugins.model.borrowing import hooked, replaced
from corsa_plugins.model.running import hidden_states, logits_at, with_hidden_states

__all__ = ["BatchLoss", "Losses", "Reuse", "exact_reuse"]

logger = logging.getLogger(__name__)

Reuse = Literal["blocks and tokens", "blocks", "nothing"]
"""What is run once per batch and not again: the blocks up to the edited one, and all tokens before the edited one."""


class Losses(NamedTuple):
    """Of each request, (n,).

    Attributes:
        total: What is minimised, with its graph.
        log_prob: Of the target behind the bare prompt, summed over its tokens, by the model's own logits.
    """

    total: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class _Texts:
    """The rows of a batch of requests as tensors; ``from_place``, positions count from each row's place."""

    requests: list[list[Row]]
    rows: list[Row]
    owners: Tensor  # (rows,), the request of each
    bare: Tensor  # (n,), the row of each request's bare prompt, its first
    ids: Tensor
    mask: Tensor
    places: Tensor  # (rows,), where delta goes
    asked: tuple[Tensor, Tensor]  # (row, position) of the logits wanted: the targets' tokens, then the KL prompts
    tokens: Tensor  # (targets' tokens,)
    weights: Tensor  # of each in its request's mean
    token_owners: Tensor
    in_bare: Tensor

    @classmethod
    def arrange(cls, requests: Sequence[Sequence[Row]], from_place: bool) -> _Texts:
        kept = [list(rows) for rows in requests]
        rows = [row for found in kept for row in found]
        owners = [i for i, found in enumerate(kept) for _ in found]
        bare = [owners.index(i) for i in range(len(kept))]
        asked, tokens, weights, token_owners, in_bare = [], [], [], [], []
        for number, (row, owner) in enumerate(zip(rows, owners, strict=True)):
            n_contexts = sum(bool(other.targets) for other in kept[owner])
            for k, token in enumerate(row.targets):
                asked.append((number, len(row.ids) - len(row.targets) + k))
                tokens.append(token)
                weights.append(1 / (len(row.targets) * n_contexts))
                token_owners.append(owner)
                in_bare.append(number == bare[owner])
        asked += [(number, row.place) for number, row in enumerate(rows) if not row.targets]
        shifts = [row.place if from_place else 0 for row in rows]
        ids, mask = pad([row.ids[shift:] for row, shift in zip(rows, shifts, strict=True)])
        return cls(
            kept,
            rows,
            torch.tensor(owners),
            torch.tensor(bare),
            ids,
            mask,
            torch.tensor([row.place - shift for row, shift in zip(rows, shifts, strict=True)]),
            (torch.tensor([row for row, _ in asked]), torch.tensor([place - shifts[row] for row, place in asked])),
            torch.tensor(tokens),
            torch.tensor(weights, dtype=torch.float64),
            torch.tensor(token_owners),
            torch.tensor(in_bare),
        )


class BatchLoss:
    """The loss as a function of the deltas (n, hidden) that are added to a block's output, one per request.

    For a request, h being the block's output at the last subject token of the bare prompt::

        mean over contexts of the mean over the target's tokens of -log p
          + kl_factor * KL(what follows the subject in "{subject} is a", with delta || without)
          + weight_decay * ||delta|| / ||h||^2

    Nothing of the blocks up to the edited one, nor of the tokens before the edited one, ever changes: they are run
    once, here, and a call runs the rest.

    Args:
        architecture: Of the model, which is frozen.
        layer: The block.
        requests: For each, its prompt in each context, the bare one first, and the prompt of the KL term last.
        settings: Factors, and where the target is read.
        reuse: What not to run again; with a ``site`` inside the block, no blocks are skipped.
        site: The module whose output the deltas are added to; by default the block.
    """

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        requests: Sequence[Sequence[Row]],
        settings: ValueSettings,
        reuse: Reuse = "blocks and tokens",
        site: nn.Module | None = None,
    ) -> None:
        self.architecture = architecture
        self.layer = layer
        self.settings = settings
        self.blocks = [place.module for place in architecture.blocks]
        self.site = self.blocks[layer] if site is None else site
        below = settings.loss_layer is not None and settings.loss_layer < len(self.blocks) - 1
        self.loss_layer = max(settings.loss_layer or 0, layer) if below else None
        if not settings.kl_factor:
            requests = [[row for row in rows if row.targets] for rows in requests]
        tokens = reuse == "blocks and tokens" and any(row.place for rows in requests for row in rows)
        self.texts = _Texts.arrange(requests, from_place=tokens)
        self.output: Any = None
        with torch.no_grad():
            self.prefix = ReadPrefix(architecture.model, self.texts.rows) if tokens else None
            logits, output = self._first_pass()
        hidden = hidden_states(output)
        initial = hidden[self.texts.bare, self.texts.places[self.texts.bare]]
        self.initial = initial.to(torch.promote_types(initial.dtype, torch.float32))
        self.norms = torch.linalg.vector_norm(self.initial, dim=-1)
        self.reference = logits[len(self.texts.tokens) :].log_softmax(-1)
        if reuse != "nothing" and self.site is self.blocks[layer]:
            self.output = with_hidden_states(output, hidden.clone())

    def __len__(self) -> int:
        return len(self.texts.requests)

    def __call__(self, delta: Tensor) -> Losses:
        """The losses at ``delta`` (n, hidden), in its precision."""
        texts, n_tokens = self.texts, len(self.texts.tokens)
        own, early = self.logits(delta)
        nll = self._nll(own[:n_tokens], delta)
        log_prob = -self._per_request(nll.detach() * texts.in_bare.to(nll))
        if early is not None:
            nll = self._nll(early, delta)
        total = self._per_request(nll * texts.weights.to(nll))
        if self.settings.kl_factor:
            # the divergence of the distribution with delta from the one without, in that order
            now = own[n_tokens:].log_softmax(-1)
            kl = F.kl_div(self.reference, now, reduction="none", log_target=True).sum(-1)
            total = total + self.settings.kl_factor * kl.to(total)
        decay = torch.linalg.vector_norm(delta, dim=-1) / self.norms.square()
        return Losses(total + self.settings.weight_decay * decay, log_prob)

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (targets' tokens and KL prompts, vocabulary); and those of the tokens by an earlier block."""
        found: list[Tensor] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_states(output)
            rows, places = (index[: len(self.texts.tokens)].to(hidden.device) for index in self.texts.asked)
            found.append(hidden[rows, places])

        # put on after what adds delta, should it be the same block: hooks run in that order
        with self._added(delta):
            if self.loss_layer is None:
                return self._pass(), None
            with hooked(self.blocks[self.loss_layer], note):
                logits = self._pass()
        return logits, self.architecture.head.module(self.architecture.norm.module(found[0][None]))[0]

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with these requests alone."""
        chosen = torch.isin(self.texts.owners, torch.tensor(kept)).nonzero()[:, 0]
        self.texts = _Texts.arrange([self.texts.requests[i] for i in kept], from_place=self.prefix is not None)
        self.initial, self.norms = self.initial[list(kept)], self.norms[list(kept)]
        if self.settings.kl_factor:
            self.reference = self.reference[list(kept)]
        if self.prefix is not None:
            self.prefix.keep(chosen)
        if self.output is not None:
            hidden = hidden_states(self.output)
            hidden = hidden[chosen.to(hidden.device), : self.texts.ids.shape[1]]
            self.output = with_hidden_states(self.output, hidden)

    def _first_pass(self) -> tuple[Tensor, Any]:
        """Logits without deltas, and what the site puts out."""
        outputs: list[Any] = []
        with hooked(self.site, lambda module, args, output: outputs.append(output)):
            logits = self._pass()
        return logits, outputs[0]

    def _pass(self) -> Tensor:
        inputs = self.prefix.inputs(self.texts.mask) if self.prefix is not None else {}
        return logits_at(self.architecture, self.texts.ids, self.texts.mask, *self.texts.asked, **inputs)

    @contextmanager
    def _added(self, delta: Tensor) -> Iterator[None]:
        """Within the block, the model has the deltas in place."""

        def add(output: Any) -> Any:
            hidden = hidden_states(output)
            rows = torch.arange(len(self.texts.rows), device=hidden.device)
            places = self.texts.places.to(hidden.device)
            moved = hidden[rows, places] + delta[self.texts.owners.to(delta.device)].to(hidden)
            return with_hidden_states(output, hidden.index_put((rows, places), moved))

        if self.output is not None:
            output = add(self.output)
            with replaced(self.blocks[: self.layer + 1], lambda *args, **kwargs: output):
                yield
            return
        with hooked(self.site, lambda module, args, output: add(output)):
            yield

    def _nll(self, logits: Tensor, delta: Tensor) -> Tensor:
        found = F.cross_entropy(logits.to(delta.dtype), self.texts.tokens.to(logits.device), reduction="none")
        return found.to(delta.device)

    def _per_request(self, values: Tensor) -> Tensor:
        """(n,): sums of what belongs to the targets' tokens."""
        return values.new_zeros(len(self)).index_add(0, self.texts.token_owners.to(values.device), values)


@torch.no_grad()
def exact_reuse(
    architecture: Architecture,
    layer: int,
    requests: Sequence[Sequence[Row]],
    settings: ValueSettings,
    site: nn.Module | None = None,
) -> Reuse:
    """The most that can be reused for the model to be itself, tried on these requests with a delta in place.

    Blocks cannot be skipped if something flows past what they put out, nor tokens if a model does not go on from what
    it keeps of them as if it had read all at once.
    """
    whole = BatchLoss(architecture, layer, requests, settings, "nothing", site)
    delta = 0.1 * whole.initial.flip(-1)
    wanted = whole.logits(delta)[0]
    # The same arithmetic in another order; in half precision every block rounds what it puts out.
    rounding = max(1e-4, 16 * torch.finfo(next(architecture.model.parameters()).dtype).eps)
    tolerance = rounding * float(wanted.abs().nan_to_num(0, 0, 0).max())
    tried: tuple[Reuse, ...] = ("blocks and tokens", "blocks")
    for reuse in tried:
        try:
            loss = BatchLoss(architecture, layer, requests, settings, reuse, site)
        except NotImplementedError:
            continue
        # What flows past the blocks is, from here on, of another text.
        logits_at(architecture, whole.texts.ids.flip(0), whole.texts.mask.flip(0), *whole.texts.asked)
        found = loss.logits(delta)[0]
        # a NaN is reported with its request later on
        if torch.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True):
            return reuse
        logger.info(
            "%s: logits differ by up to %.3g when %s up to block %d are not run again; they will be",
            type(architecture.model).__name__,
            float((found - wanted).abs().max()),
            reuse,
            layer,
        )
    return "nothing"
