"""What a demo is run on: the embedded testbed, or what a pretrained model truly knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corsa_plugins.alphaedit import collect_statistics
from corsa_plugins.alphaedit.auto.layers import likely_layers
from corsa_plugins.atlas import Asking, Draw, plan_rounds, read_facts
from corsa_plugins.atlas.export import KNOWN, MODEL
from corsa_plugins.bench.protocols import UpdatePlan, temporal_stream
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.files import atomic_directory
from corsa_plugins.methods.spec import TESTBED, MethodSpec
from corsa_plugins.model.architecture import find_architecture
from corsa_plugins.model.loading import load_model
from corsa_plugins.model.sampling import sample_texts
from corsa_plugins.testbed import load_testbed, texts_of_testbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CAREFUL", "AtlasWorld", "Rounds", "TestbedWorld", "World"]

CAREFUL = "careful"
"""The preset of a method's settings for a model that nothing was tuned on, where it has one."""


@dataclass(frozen=True)
class Rounds:
    """Two rounds of edits, the second on top of the first.

    Attributes:
        size: Edits in a round.
        seed: Which facts are edited to what, the adapters' initial values, and the order of the data.
        untouched: Facts to watch that no edit is about.
    """

    size: int = 100
    seed: int = 0
    untouched: int = 500


class World(Protocol):
    """A model, facts of it to edit, and how methods are set up for it; plain enough to be sent to a process."""

    @property
    def title(self) -> str:
        """What the page says behind "two rounds of edits"."""

    @property
    def notes(self) -> tuple[str, ...]:
        """For the reader of the page."""

    @property
    def model(self) -> str:
        """What the page calls the model."""

    @property
    def arguments(self) -> str:
        """Of ``corsa demo``, to run it on this world."""

    def about(self, rounds: Rounds) -> str:
        """What is edited, in a few lines for the terminal."""

    def plan(self, rounds: Rounds) -> UpdatePlan:
        """The rounds as a stream.

        Raises:
            SettingError: There are fewer facts than they need.
        """

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, and its tokenizer."""

    def options(self, spec: MethodSpec) -> dict[str, Any]:
        """Of a method on this model, beside statistics."""

    def has(self, spec: MethodSpec) -> bool:
        """Whether a method can be set up."""

    def save_statistics(self, folder: Path, specs: Sequence[MethodSpec]) -> None:
        """What methods need to know of the model's keys, unless the folder is there."""


@dataclass(frozen=True)
class TestbedWorld:
    """The embedded testbed, and for every method the settings that were chosen on it."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    title = "on the testbed"
    model = "the testbed"
    arguments = ""
    notes = (
        "Two rounds of edits on a small model that knows a small world; round 2 goes on with what round 1 left. "
        "Methods see statements alone; paraphrases are questions that none of them saw. The model is built to tell "
        "methods apart: its collateral damage is larger than that of large models.",
    )

    def about(self, rounds: Rounds) -> str:
        bed = load_testbed()
        return (
            f"The testbed: a {bed.model.num_parameters() / 1e6:.1f} M-parameter Llama that knows "
            f"{len(bed.world.facts)} facts of a small world, each in a statement and in questions.\n"
            f"Round 1 changes {rounds.size} of them, round 2 another {rounds.size}, on top. Methods see the statements "
            "alone; the questions are what the model is asked."
        )

    def plan(self, rounds: Rounds) -> UpdatePlan:
        world = load_testbed().world
        try:
            edits = world.edit_rounds(n_rounds=2, size=rounds.size, seed=rounds.seed, untouched=rounds.untouched)
        except ValueError as error:
            raise SettingError(f"size {rounds.size}: {error}") from error
        return temporal_stream(edits.rounds, untouched=edits.untouched)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        bed = load_testbed()
        return bed.model, bed.tokenizer

    def options(self, spec: MethodSpec) -> dict[str, Any]:
        return {"settings": TESTBED}

    def has(self, spec: MethodSpec) -> bool:
        return spec.missing is not None or TESTBED in spec.presets()

    def save_statistics(self, folder: Path, specs: Sequence[MethodSpec]) -> None:
        """From text of the testbed's world; the layers are those of the methods' settings for it."""
        layers = sorted({layer for spec in specs for layer in spec.settings_class().load(TESTBED).layers})
        if folder.exists() or not layers:
            return
        bed = load_testbed()
        texts = texts_of_testbed(bed)
        statistics = collect_statistics(bed.model, bed.tokenizer, texts, layers, n_tokens=60_000, batch_size=64)
        with atomic_directory(folder) as new:
            statistics.save(new)


@dataclass(frozen=True)
class AtlasWorld:
    """What ``corsa atlas`` found a model to know; every method with settings that are of no model.

    Prompts, wordings and neighbours are the statements of the atlas, continued as they stand; its questions are for
    chat. Each request is asked with at most ``neighbours`` of its neighbours, to have done in minutes.

    Attributes:
        folder: That ``corsa atlas`` wrote.
        neighbours: The most for each request.
        tokens: Of the model's own text, for the statistics of its keys.
    """

    folder: Path
    neighbours: int = 2
    tokens: int = 16_000

    notes = (
        "Two rounds of edits of what a pretrained model knows; round 2 goes on with what round 1 left. Nothing was "
        "tuned on this model: every method has the settings it has when none are given; adapters are trained until "
        "their facts are learned, and what should stay is held.",
    )

    title = "of what a pretrained model knows"

    @property
    def model(self) -> str:
        return str(self.folder / MODEL)

    @property
    def arguments(self) -> str:
        return f" --atlas {self.folder}"

    def about(self, rounds: Rounds) -> str:
        model, _ = self.load()
        return (
            f"{self.folder / MODEL}: a {model.num_parameters() / 1e6:.0f} M-parameter {model.config.model_type}.\n"
            f"Round 1 changes {rounds.size} facts that it knows, round 2 another {rounds.size}, on top. Methods see "
            "one statement of each; it is asked others."
        )

    def plan(self, rounds: Rounds) -> UpdatePlan:
        draw = Draw(rounds=2, size=rounds.size, seed=rounds.seed, untouched=rounds.untouched)
        drawn = plan_rounds(read_facts(self.folder / KNOWN), draw)
        sets = [[self.statements(request) for request in each] for each in drawn.rounds]
        return temporal_stream(sets, untouched=drawn.untouched)

    def statements(self, request: EditRequest) -> EditRequest:
        """A request of the atlas as it is asked here: wordings that are statements, and the first neighbours."""
        return request.model_copy(
            update={
                "paraphrases": tuple(filter(_is_statement, request.paraphrases)),
                "validation_prompts": tuple(filter(_is_statement, request.validation_prompts)),
                "neighborhood": request.neighborhood[: self.neighbours],
            }
        )

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """In bfloat16 where the processor computes in it, else as it was written."""
        return load_model(self.folder / MODEL, dtype=Asking().precision)

    def options(self, spec: MethodSpec) -> dict[str, Any]:
        return {"settings": CAREFUL} if spec.missing is None and CAREFUL in spec.presets() else {}

    def has(self, spec: MethodSpec) -> bool:
        return spec.missing is not None or not spec.needs_settings

    def save_statistics(self, folder: Path, specs: Sequence[MethodSpec]) -> None:
        """From text that the model writes by itself, of the layers that facts are likely to be edited in."""
        if folder.exists() or not specs:
            return
        model, tokenizer = self.load()
        texts = sample_texts(model, tokenizer, self.tokens)
        layers = likely_layers(len(find_architecture(model).blocks))
        n = self.tokens
        statistics = collect_statistics(model, tokenizer, texts, layers, n_tokens=n, length=128, batch_size=32)
        with atomic_directory(folder) as new:
            statistics.save(new)


def _is_statement(prompt: str) -> bool:
    """Whether a prompt breaks off where its answer goes, as questions and requests do not."""
    return prompt[-1:].isalnum()
