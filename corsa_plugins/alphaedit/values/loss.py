"""The loss of value vectors for a batch of requests: likelihood of the targets, KL, weight decay (ROME, Eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsa_plugins.alphaedit.lookup.rows import Row
from corsa_plugins.alphaedit.values.batch_texts import BatchTexts
from corsa_plugins.alphaedit.values.prefix import ReadPrefix
from corsa_plugins.alphaedit.values.settings import ValueSettings
from corsa_plugins.model.architecture import Architecture, ArchitectureError
from corsa_plugins.model.borrowing import hooked, replaced
from corsa_plugins.model.running import hidden_states, logits_at, with_hidden_states
from corsa_plugins.model.short_attention import short_attention

__all__ = ["BatchLoss", "Losses", "Reuse"]

Reuse = Literal["blocks and tokens", "blocks", "nothing"]
"""What is run once per batch and not again: the blocks up to the edited one, and all tokens before the edited one."""


class Losses(NamedTuple):
    """Of each request, (n,).

    Attributes:
        total: What is minimised, with its graph.
        log_prob: Of the target behind the bare prompt, summed over its tokens, by the model's own logits.
        most_probable: Whether every token of the target is the most probable one in every context, where the loss
            reads them.
    """

    total: Tensor
    log_prob: Tensor
    most_probable: Tensor


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
        self.blocks = [block.module for block in architecture.blocks]
        self.site = self.blocks[layer] if site is None else site
        below = settings.loss_layer is not None and settings.loss_layer < len(self.blocks) - 1
        self.loss_layer = max(settings.loss_layer or 0, layer) if below else None
        if not settings.kl_factor:
            requests = [[row for row in rows if row.targets] for rows in requests]
        tokens = reuse == "blocks and tokens" and any(row.position for rows in requests for row in rows)
        self.texts = BatchTexts.arrange(requests, shifted=tokens)
        self.output: Any = None
        with torch.no_grad():
            self.prefix = ReadPrefix(architecture.model, self.texts.rows) if tokens else None
            logits, output = self._first_pass()
        hidden = hidden_states(output)
        initial = self._by_row(hidden)[self.texts.bare, self.texts.positions[self.texts.bare]]
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
        read = own[:n_tokens] if early is None else early
        if early is not None:
            nll = self._nll(early, delta)
        missed = read.detach().argmax(-1) != texts.tokens.to(read.device)
        total = self._per_request(nll * texts.weights.to(nll))
        if self.settings.kl_factor:
            # the divergence of the distribution with delta from the one without, in that order
            now = own[n_tokens:].log_softmax(-1)
            kl = F.kl_div(self.reference, now, reduction="none", log_target=True).sum(-1)
            total = total + self.settings.kl_factor * kl.to(total)
        decay = torch.linalg.vector_norm(delta, dim=-1) / self.norms.square()
        most_probable = self._per_request(missed.to(nll.device, torch.int64)) == 0
        return Losses(total + self.settings.weight_decay * decay, log_prob, most_probable)

    def logits(self, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (targets' tokens and KL prompts, vocabulary); and those of the tokens by an earlier block."""
        early: list[Tensor] = []

        def note(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_states(output)
            rows, positions = (index[: len(self.texts.tokens)].to(hidden.device) for index in self.texts.wanted)
            early.append(hidden[rows, positions])

        # put on after what adds delta, should it be the same block: hooks run in that order
        with self._added(delta):
            if self.loss_layer is None:
                return self._pass(), None
            with hooked(self.blocks[self.loss_layer], note):
                logits = self._pass()
        return logits, self.architecture.head.module(self.architecture.norm.module(early[0][None]))[0]

    @property
    def kept_bytes(self) -> int:
        """Of what is run once and stays."""
        output = 0 if self.output is None else hidden_states(self.output).nbytes
        return output + (0 if self.prefix is None else self.prefix.nbytes)

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with these requests alone."""
        chosen = torch.isin(self.texts.owners, torch.tensor(kept)).nonzero()[:, 0]
        self.texts = BatchTexts.arrange([self.texts.requests[i] for i in kept], shifted=self.prefix is not None)
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
        length = inputs.get("attention_mask", self.texts.mask).shape[1]
        with short_attention(self.architecture.model, length):
            return logits_at(self.architecture, self.texts.ids, self.texts.mask, *self.texts.wanted, **inputs)

    @contextmanager
    def _added(self, delta: Tensor) -> Iterator[None]:
        """Within the block, the model has the deltas in place."""

        def add(output: Any) -> Any:
            hidden = self._by_row(hidden_states(output))
            rows = torch.arange(len(self.texts.rows), device=hidden.device)
            positions = self.texts.positions.to(hidden.device)
            moved = hidden[rows, positions] + delta[self.texts.owners.to(delta.device)].to(hidden)
            hidden = hidden.index_put((rows, positions), moved)
            return with_hidden_states(output, hidden.reshape(hidden_states(output).shape))

        if self.output is not None:
            output = add(self.output)
            with replaced(self.blocks[: self.layer + 1], lambda *args, **kwargs: output):
                yield
            return
        with hooked(self.site, lambda module, args, output: add(output)):
            yield

    def _by_row(self, hidden: Tensor) -> Tensor:
        """(rows, length, width): a mixture's experts put out (rows * length, width)."""
        if hidden.shape[:-1].numel() != self.texts.ids.numel():
            raise ArchitectureError(
                f"block {self.layer} ({type(self.blocks[self.layer]).__name__}) puts out {tuple(hidden.shape)}, "
                "several streams for each token: give site=, for instance the down map of its FFN"
            )
        return hidden.reshape(len(self.texts.rows), -1, hidden.shape[-1])

    def _nll(self, logits: Tensor, delta: Tensor) -> Tensor:
        nll = F.cross_entropy(logits.to(delta.dtype), self.texts.tokens.to(logits.device), reduction="none")
        return nll.to(delta.device)

    def _per_request(self, values: Tensor) -> Tensor:
        """(n,): sums of what belongs to the targets' tokens."""
        return values.new_zeros(len(self)).index_add(0, self.texts.token_owners.to(values.device), values)
