"""Which router is to choose, decided before there is a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsa_plugins.bench.routing.descriptions import list_prompts, list_subjects, read_descriptions, summarise
from corsa_plugins.bench.routing.label import LabelRouter
from corsa_plugins.bench.routing.nearest import NearestRouter
from corsa_plugins.bench.routing.question import QuestionRouter
from corsa_plugins.bench.routing.router import ScoringRouter
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DESCRIBED_BY", "ROUTERS", "RouterChoice"]

ROUTERS = ("label", "question", "nearest")
DESCRIBED_BY = ("summary", "prompts", "subjects")


@dataclass(frozen=True)
class RouterChoice:
    """A router by its name, with what it is made with.

    Attributes:
        name: ``"label"`` (:class:`~corsa_plugins.bench.routing.label.LabelRouter`), ``"question"``
            (:class:`~corsa_plugins.bench.routing.question.QuestionRouter`) or ``"nearest"``
            (:class:`~corsa_plugins.bench.routing.nearest.NearestRouter`, which reads no descriptions).
        describe: How parts are described: ``"summary"`` in the model's own words, ``"prompts"`` or ``"subjects"`` by
            listing them; by default a summary with a chat template, else prompts.
        descriptions: A file of descriptions instead (:func:`~corsa_plugins.bench.routing.descriptions.
            read_descriptions`).
        calibrate: With ``label``, as for it.
        layer: With ``nearest``, as for it.
        chat_template: Describe and ask through the chat template.

    Raises:
        SettingError: An unknown name or description, or settings that do not go together.
    """

    name: str = "label"
    describe: str | None = None
    descriptions: Path | None = None
    calibrate: bool = False
    layer: int | None = None
    chat_template: bool = False

    def __post_init__(self) -> None:
        for field, value, known in (
            ("router", self.name, ROUTERS),
            ("describe", self.describe or "prompts", DESCRIBED_BY),
        ):
            if value not in known:
                raise SettingError(f"{field} is {value!r}: choose {', '.join(known[:-1])} or {known[-1]}")
        if (self.describe or self.descriptions) and not self.reads_descriptions:
            raise SettingError("the router nearest reads no descriptions: leave out --descriptions and --describe")
        if self.describe and self.descriptions:
            raise SettingError("--descriptions and --describe: give one")
        if self.calibrate and self.name != "label":
            raise SettingError("--calibrate goes with --router label")
        if self.layer is not None and self.name != "nearest":
            raise SettingError("--layer goes with --router nearest")

    @property
    def reads_descriptions(self) -> bool:
        """Whether it chooses by descriptions of the parts, rather than by their requests."""
        return self.name != "nearest"

    def given(self, names: Sequence[str]) -> dict[str, str]:
        """The descriptions in the file, by name; none without a file.

        Raises:
            SettingError: As for :func:`~corsa_plugins.bench.routing.descriptions.read_descriptions`.
        """
        return read_descriptions(self.descriptions, names) if self.descriptions else {}

    def describe_parts(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        parts: Mapping[str, Sequence[EditRequest]],
    ) -> dict[str, str]:
        """Descriptions of the parts, by name; none where the router reads none.

        Args:
            model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
            tokenizer: Its tokenizer.
            parts: The requests of each part, by its name.

        Raises:
            SettingError: A part has no requests, or a request no subject where subjects are listed.
        """
        how = self.describe or ("summary" if self.chat_template else "prompts")
        if not self.reads_descriptions:
            return {}
        if how == "summary":
            chat_template = self.chat_template
            return {
                name: summarise(model, tokenizer, part, chat_template=chat_template) for name, part in parts.items()
            }
        return {name: (list_subjects if how == "subjects" else list_prompts)(part) for name, part in parts.items()}

    def router(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        parts: Sequence[Sequence[EditRequest]],
        descriptions: Sequence[str] = (),
        *,
        batch_size: int = 64,
    ) -> ScoringRouter:
        """The router itself.

        Args:
            model: The base model, or a ``PeftModel``, whose adapters are switched off to ask.
            tokenizer: Its tokenizer.
            parts: The requests of each adapter; read by ``nearest``.
            descriptions: Of each part; read by the others.
            batch_size: Sequences per forward pass.

        Raises:
            SettingError: As for the router.
        """
        ask: dict[str, Any] = {"chat_template": self.chat_template, "batch_size": batch_size}
        if self.name == "nearest":
            return NearestRouter(model, tokenizer, parts, layer=self.layer, **ask)
        if self.name == "question":
            return QuestionRouter(model, tokenizer, descriptions, **ask)
        return LabelRouter(model, tokenizer, descriptions, calibrate=self.calibrate, **ask)
