"""What an edit is computed from, read off a model at its present weights: contexts, keys, targets, what is missing.

Nothing is changed. K1, V1 and W K1 are those of papers/alphaedit-plus.md, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from corsa_plugins.alphaedit.lookup.contexts import generate_contexts
from corsa_plugins.alphaedit.lookup.keys import request_keys, request_outputs
from corsa_plugins.alphaedit.settings import AlphaEditSettings
from corsa_plugins.alphaedit.values.anchor import anchored
from corsa_plugins.alphaedit.values.search import Values, find_values
from corsa_plugins.alphaedit.weights import Site
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.model.architecture import Architecture, LinearMap
from corsa_plugins.model.running import adds_output_as_it_is

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ModelReader"]


@dataclass(frozen=True)
class ModelReader:
    """Reads off a model what an edit with ``settings`` needs.

    Attributes:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        architecture: Where the model's parts are.
        maps: The down maps that can be edited, by layer; those of the settings at least.
        settings: Which layers, and where keys and values are read.
        anchors: By layer, the norm that its values are brought to.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    maps: Mapping[Site, LinearMap]
    settings: AlphaEditSettings
    anchors: Mapping[int, float] = field(default_factory=dict)
    _sites: dict[int, nn.Module | None] = field(default_factory=dict, repr=False)

    def contexts(self) -> tuple[str, ...]:
        """Templates that keys and values are averaged over."""
        return generate_contexts(
            self.model,
            self.tokenizer,
            n=self.settings.n_contexts,
            length=self.settings.context_length,
            architecture=self.architecture,
        )

    def keys(
        self, requests: Sequence[EditRequest], contexts: Sequence[str], layers: Sequence[int] | None = None
    ) -> dict[int, Tensor]:
        """K1, (d_in, N), of each layer; by default of all that are edited."""
        return request_keys(
            self.model,
            self.tokenizer,
            requests,
            self.settings.layers if layers is None else layers,
            contexts,
            fact_token=self.settings.values.fact_token,
            chat_template=bool(self.settings.values.chat_template),
            batch_size=self.settings.batch_size,
            architecture=self.architecture,
        )

    def values(
        self,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        *,
        layer: int | None = None,
        progress: bool = False,
    ) -> Values:
        """V1, (d_out, N): v* of each request; by default of the last edited layer, and of the first where each layer
        gets its own."""
        layer = self.value_layers[0] if layer is None else layer
        return self.anchored(requests, layer, self.found(requests, contexts, layer, progress=progress))

    def found(
        self, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int, *, progress: bool = False
    ) -> Values:
        """The same for one layer as they are found, brought to no norm."""
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

    def anchored(self, requests: Sequence[EditRequest], layer: int, found: Values) -> Values:
        """What was :meth:`found` at the weights as they are, brought to the layer's norm; as it is without one."""
        if self.settings.norm_anchor is None or layer not in self.anchors:
            return found
        outputs = self.ffn_outputs(requests, layer, found)
        return anchored(found, outputs, self.anchors[layer], self.settings.norm_anchor.skip_over)

    def ffn_outputs(self, requests: Sequence[EditRequest], layer: int, found: Values) -> Tensor:
        """(d_out, N), what the FFN's down map puts out at the bare prompts; ``found`` at the same weights."""
        site = self.maps[layer].module
        return found.initial if self._site(layer) is site else self._outputs(requests, layer, site)

    @property
    def value_layers(self) -> tuple[int, ...]:
        """The layers that values are looked for at; first the one whose are looked for before anything is edited."""
        layers = self.settings.layers
        first = layers[0 if self.settings.residuals == "own" else -1]
        return (first, *(layer for layer in layers if layer != first and self._is_apart(layer)))

    def targets(self, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int, found: Values) -> Tensor:
        """V1 that an edit of ``layer`` goes by, (d_out, N): ``found``, what :meth:`values` gave, or the layer's own.

        Where what the FFN puts out is no term of what the last block does, the layer gets targets of its own; so does
        each where the settings say so, found at the weights as they are when its turn comes.
        """
        begins = self.settings.residuals == "own" and layer == self.settings.layers[0]
        if self._is_apart(layer) and len(self.settings.layers) > 1 and not begins:
            return self.values(requests, contexts, layer=layer).vectors
        return found.vectors

    def outputs(self, requests: Sequence[EditRequest], layer: int) -> Tensor:
        """W K1, (d_out, N), where the targets of an edit of ``layer`` are: at the last edited layer, or at its own."""
        layer = layer if self._is_apart(layer) else self.settings.layers[-1]
        return self._outputs(requests, layer, self._site(layer))

    def _outputs(self, requests: Sequence[EditRequest], layer: int, site: nn.Module | None) -> Tensor:
        return request_outputs(
            self.model,
            self.tokenizer,
            requests,
            layer,
            fact_token=self.settings.values.fact_token,
            chat_template=bool(self.settings.values.chat_template),
            batch_size=self.settings.batch_size,
            architecture=self.architecture,
            site=site,
        )

    def _is_apart(self, layer: int) -> bool:
        """Whether its targets are not those of the last edited layer."""
        return self.settings.residuals == "own" or self._site(layer) is not None

    def _site(self, layer: int) -> nn.Module | None:
        """Where values of a layer live: ``None`` for what the block puts out, or the down map itself.

        Values are those of the block where it adds what the FFN puts out, as all the papers' models do. Where a norm or
        a scale comes between, an update of the weights would be undone in part: values are then the down map's own, as
        they are in ROME everywhere.
        """
        if layer not in self._sites:
            plain = self.settings.values.at == "block" and adds_output_as_it_is(self.architecture, layer)
            self._sites[layer] = None if plain else self.maps[layer].module
        return self._sites[layer]
