"""A batch of requests as the tensors that a loss works with: padded rows, and which logits are wanted of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corsa_plugins.alphaedit.lookup.rows import Row
from corsa_plugins.model.batching import pad

__all__ = ["BatchTexts"]


@dataclass(frozen=True)
class BatchTexts:
    """The rows of n requests; with ``shifted`` rows, positions count from each row's own.

    Attributes:
        requests: The rows of each request: its prompt in each context, the bare one first, and the KL prompt, if any.
        rows: All of them, one request after the other.
        owners: (rows,), the request of each.
        bare: (n,), the row of each request's bare prompt.
        ids: (rows, longest).
        mask: Likewise, the attention mask.
        positions: (rows,), where delta goes.
        wanted: (row, position) of the logits that are wanted: the targets' tokens, then the KL prompts.
        tokens: (targets' tokens,), over all rows.
        weights: Of each of these tokens in its request's mean.
        token_owners: The request of each.
        in_bare: Whether it follows the bare prompt.
    """

    requests: list[list[Row]]
    rows: list[Row]
    owners: Tensor
    bare: Tensor
    ids: Tensor
    mask: Tensor
    positions: Tensor
    wanted: tuple[Tensor, Tensor]
    tokens: Tensor
    weights: Tensor
    token_owners: Tensor
    in_bare: Tensor

    @classmethod
    def arrange(cls, requests: Sequence[Sequence[Row]], shifted: bool) -> BatchTexts:
        """The tensors; with ``shifted``, of what each row has from its position on."""
        groups = [list(rows) for rows in requests]
        rows = [row for group in groups for row in group]
        owners = [index for index, group in enumerate(groups) for _ in group]
        bare = [owners.index(index) for index in range(len(groups))]
        wanted, tokens, weights, token_owners, in_bare = [], [], [], [], []
        for number, (row, owner) in enumerate(zip(rows, owners, strict=True)):
            n_contexts = sum(bool(other.targets) for other in groups[owner])
            for k, token in enumerate(row.targets):
                wanted.append((number, len(row.ids) - len(row.targets) + k))
                tokens.append(token)
                weights.append(1 / (len(row.targets) * n_contexts))
                token_owners.append(owner)
                in_bare.append(number == bare[owner])
        wanted += [(number, row.position) for number, row in enumerate(rows) if not row.targets]
        shifts = [row.position if shifted else 0 for row in rows]
        ids, mask = pad([row.ids[shift:] for row, shift in zip(rows, shifts, strict=True)])
        return cls(
            requests=groups,
            rows=rows,
            owners=torch.tensor(owners),
            bare=torch.tensor(bare),
            ids=ids,
            mask=mask,
            positions=torch.tensor([row.position - shift for row, shift in zip(rows, shifts, strict=True)]),
            wanted=(
                torch.tensor([row for row, _ in wanted]),
                torch.tensor([position - shifts[row] for row, position in wanted]),
            ),
            tokens=torch.tensor(tokens),
            weights=torch.tensor(weights, dtype=torch.float64),
            token_owners=torch.tensor(token_owners),
            in_bare=torch.tensor(in_bare),
        )
