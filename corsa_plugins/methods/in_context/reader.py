"""A model that reads, before every question, the stored edits that the question is about.

It is asked as any model is: what it is given are the tokens of questions, and what it puts out belongs to these alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from corsa_plugins.methods.in_context.store import FactStore
from corsa_plugins.model.batching import pad
from corsa_plugins.model.tokenization import encode_prompt, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["InContextModel"]


class InContextModel(nn.Module):
    """A causal language model with a store of edits.

    A question in text has its edits in front, behind a BOS token; one in chat has them at the beginning of the user's
    last turn. Every row is read whole, without a cache from call to call.

    Args:
        base: The model; it is left as it is.
        tokenizer: Its tokenizer.
        store: The edits.
    """

    store_digest: Tensor

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, store: FactStore) -> None:
        super().__init__()
        self.base: Any = base
        self.tokenizer = tokenizer
        self.store = store
        self._turn = _user_turn(tokenizer)
        told = json.dumps([[r.model_dump(mode="json") for r in store.requests], store.settings.as_dict()])
        digest = list(hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:8])
        self.register_buffer("store_digest", torch.tensor(digest, dtype=torch.float64))  # what tells models apart
        self.train(base.training)

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.base.config

    @property
    def generation_config(self) -> Any:
        """Of the model."""
        return self.base.generation_config

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return torch.device(self.base.device)

    def over(self, base: PreTrainedModel) -> InContextModel:
        """The same edits before another model."""
        return InContextModel(base, self.tokenizer, self.store)

    def tie_weights(self) -> None:
        """Of the model, which has them tied already."""
        self.base.tie_weights()

    def get_base_model(self) -> Any:
        """The model, without the store."""
        return self.base

    def get_input_embeddings(self) -> Any:
        """Of the model."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Of the model."""
        return self.base.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        use_cache: bool = False,
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        **inputs: Any,
    ) -> CausalLMOutput:
        """Logits (rows, length, vocabulary) of the given tokens alone, or of the last ``logits_to_keep`` of each row.

        Raises:
            NotImplementedError: A cache is wanted, or anything else that goes by the places of the tokens.
        """
        if use_cache or past_key_values is not None or inputs:
            raise NotImplementedError("a model with stored edits reads every row whole, by its ids and their mask")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, places = self._rows(input_ids, mask)
        ids, longer = (part.to(input_ids.device) for part in pad(rows))
        output = self.base(
            input_ids=ids, attention_mask=longer, use_cache=False, output_hidden_states=output_hidden_states
        )
        places = places[:, -logits_to_keep:] if logits_to_keep else places
        states = tuple(_at(state, places) for state in output.hidden_states) if output_hidden_states else None
        return CausalLMOutput(logits=_at(output.logits, places), hidden_states=states)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """The given rows, and what the model goes on with behind each and its edits, which no length counts."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, _ = self._rows(input_ids, mask)
        config = options.get("generation_config")
        padding = getattr(config, "pad_token_id", None) or self.tokenizer.pad_token_id or 0
        ids, longer = (part.to(input_ids.device) for part in pad(rows, padding, side="left"))
        if options.get("max_length") is not None:
            options["max_length"] += ids.shape[1] - input_ids.shape[1]
        written = self.base.generate(input_ids=ids, attention_mask=longer, **options)
        return torch.cat([input_ids, written[:, ids.shape[1] :]], dim=1)

    def _rows(self, ids: Tensor, mask: Tensor) -> tuple[list[list[int]], Tensor]:
        """Every row with its edits and without padding; and where each of its tokens is there, as ``ids``."""
        rows, places = [], torch.zeros_like(ids)
        for number, (row, kept) in enumerate(zip(ids, mask.bool(), strict=True)):
            tokens: list[int] = row[kept].tolist()
            at = self._question(tokens)
            text = self.tokenizer.decode(tokens[at:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            context = self.store.context(str(text))
            added = encode_text(self.tokenizer, context, special=False) if context else []
            rows.append([*tokens[:at], *added, *tokens[at:]])
            index = torch.arange(len(tokens), device=ids.device)
            places[number, kept] = torch.where(index < at, index, index + len(added))
        return rows, places

    def _question(self, tokens: Sequence[int]) -> int:
        """Where in a row the question begins."""
        turn = self._turn
        for start in range(len(tokens) - len(turn), -1, -1):
            if turn and list(tokens[start : start + len(turn)]) == turn:
                return start + len(turn)
        return int(bool(tokens) and tokens[0] == self.tokenizer.bos_token_id)


def _at(states: Tensor, places: Tensor) -> Tensor:
    rows = torch.arange(len(places), device=states.device)[:, None]
    return states[rows, places.to(states.device)]


def _user_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a chat template writes right before what a user says, in the first turn and later; empty: no template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    alone, after = (_before_question(tokenizer, said) for said in ([], [("B", "C")]))
    pairs = enumerate(zip(reversed(alone), reversed(after), strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(alone), len(after)))
    return alone[len(alone) - shared :]


def _before_question(tokenizer: PreTrainedTokenizerBase, said: Sequence[tuple[str, str]]) -> list[int]:
    one, other = (encode_prompt(tokenizer, question, True, said) for question in ("A", "7"))
    return one[: next(place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])]
