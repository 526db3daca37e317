"""What the hyper-parameters of both methods share: reading, checking, and the fields ``BaseEditor`` itself reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field

from corsa_plugins.errors import LoadingError, SettingError
from corsa_plugins.model.gguf import refuse_gguf
from corsa_plugins.paths import user_path
from corsa_plugins.settings import (
    Count,
    InvalidSettingsError,
    check_fields,
    missing_fields,
    read_mapping,
    unknown_names,
)

__all__ = ["HparamsError", "HyperParams", "Template", "expect", "fields_named", "hparams_errors"]


class HparamsError(SettingError):
    """Hyper-parameters that cannot be used; the message names the file, the field, and what to do."""


@contextmanager
def hparams_errors(where: str = "") -> Iterator[None]:
    """Within the block, settings that cannot be are hyper-parameters that cannot; ``where`` goes in front."""
    try:
        yield
    except SettingError as error:
        raise HparamsError(f"{where}{error}") from error


@contextmanager
def fields_named(kind: type[HyperParams]) -> Iterator[None]:
    """Within the block, or the function, errors about a model's parts say what to pass by hand in the fields of
    ``kind``."""
    from corsa_plugins.model.architecture import ArchitectureError

    try:
        yield
    except ArchitectureError as error:
        raise error.renamed(kind.PARTS, kind.REMEDY) from error


def _known_device(device: int | str) -> int | str:
    import torch

    try:
        good = device >= 0 if isinstance(device, int) else device.isdigit() or bool(torch.device(device).type)
    except RuntimeError:
        good = False
    if not good:
        raise ValueError
    return device


def _model_or_pair(model: Any) -> Any:
    if isinstance(model, str) and model:
        try:
            refuse_gguf(model, "EasyEdit")
        except LoadingError as error:
            raise ValueError(str(error)) from None
        return model
    pair = isinstance(model, tuple | list) and len(model) == 2
    if not pair or not hasattr(model[0], "parameters") or not callable(model[1]):
        raise ValueError
    return model


def _one_place(template: str) -> str:
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise ValueError
    return template


Device = Annotated[
    int | str,
    Field(description="the number of a GPU, cpu, or a name such as cuda:1"),
    AfterValidator(_known_device),
]
ModelName = Annotated[
    Any, Field(description="a name, a folder, or a pair (model, tokenizer)"), AfterValidator(_model_or_pair)
]
Template = Annotated[
    Annotated[str, AfterValidator(_one_place)] | None,
    Field(
        description="a name with {} once, for the number of the block, as in 'model.layers.{}.mlp', or left out",
    ),
]
"""Name of the modules of a kind, or ``None``."""


@dataclass(kw_only=True)
class HyperParams:
    """Base of the hyper-parameters: plain, mutable data, like EasyEdit's own class of this name.

    A field can be changed after loading, as in ``hparams.device = "cpu"``; it is checked when it is used.

    Attributes:
        model_name: A name on the Hugging Face Hub, a folder, or a pair (model, tokenizer). EasyEdit chooses the class
            by what the name contains (gpt, llama, qwen2, qwen3, mistral, ...): for any other model give the pair.
        device: A number, ``"cpu"``, or a name such as ``"cuda:1"``.
        alg_name: The method.
        max_length: Longest prompt in EasyEdit's evaluation, in tokens.
        batch_size: Requests edited together by ``batch_edit``. ``edit`` wants 1, as for every method of EasyEdit.
        model_parallel: Let EasyEdit spread the model over the GPUs.
        fp16: Let EasyEdit load the model in float16.
        evaluation_type: Of EasyEdit's evaluation: ``None``, ``"LLM-judge"`` or ``"generate-text"``.
        api_key: For the judge.
        use_chat_template: Whether EasyEdit's evaluation puts prompts through the chat template.
    """

    METHOD: ClassVar[str] = ""
    FOREIGN: ClassVar[Mapping[str, str]] = {}
    """What other methods call our fields, for the hint in an error."""
    PARTS: ClassVar[Mapping[str, str]] = {}
    """Fields for names of a model's parts, by the argument of ``find_architecture`` that each is."""
    REMEDY: ClassVar[str | None] = (
        ": no field of this method names parts by hand; AlphaEditPlus and the like (layer_module_tmp, mlp_module_tmp, "
        "rewrite_module_tmp) and RSFT (modules) have some"
    )
    """What to do where a part cannot be told; ``None``: name it by the field in ``PARTS``."""

    model_name: ModelName
    device: Device
    alg_name: str
    max_length: int = 40
    batch_size: Count = 1
    model_parallel: bool = False
    fp16: bool = False
    evaluation_type: str | None = None
    api_key: str | None = field(default=None, repr=False)
    use_chat_template: bool = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Bring every field to its type (``"5e-1"``, which YAML reads as text, to 0.5) and check it.

        Raises:
            HparamsError: Fields that are wrong, all of them, with what they may be.
        """
        if self.alg_name != self.METHOD:
            raise HparamsError(
                f"alg_name is {self.alg_name!r}, and {type(self).__name__} is for {self.METHOD!r}: change one of them"
            )
        with hparams_errors():
            for name, value in check_fields(type(self), vars(self), lenient=True).items():
                setattr(self, name, value)

    @classmethod
    def from_hparams(cls, hparams_name_or_path: str | os.PathLike[str]) -> Self:
        """Read a YAML or JSON file; ``.yaml`` may be left out.

        Raises:
            HparamsError: There is no such file, it cannot be read, has unknown fields, lacks required ones, or a
                value cannot be; the message names the file and every such field.
        """
        path = user_path(hparams_name_or_path)
        if path.suffix not in (".yaml", ".yml", ".json"):
            path = path.with_name(path.name + ".yaml")
        if not path.is_file():
            raise HparamsError(
                f"{path}: no such file; easyedit_ext.hparams_path(method, model) finds the packaged ones"
            )
        with hparams_errors():
            data = read_mapping(path, str(path))
        return cls.from_dict(data, where=f"{path}: ")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "") -> Self:
        """From a mapping of fields; ``where`` goes in front of the messages.

        Raises:
            HparamsError: As for :meth:`from_hparams`.
        """
        known = [field.name for field in fields(cls)]
        with hparams_errors(where):
            if problems := [*unknown_names(data, known, cls.FOREIGN), *missing_fields(cls, data)]:
                raise InvalidSettingsError(problems)
            return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; a pair (model, tokenizer) is the same objects, not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def expect(hparams: object, kind: type[HyperParams]) -> None:
    """See that a method got hyper-parameters of its own, and that they are still right: they are mutable.

    Raises:
        HparamsError: They are of another class, or a field was set to what it cannot be.
    """
    if not isinstance(hparams, kind):
        raise HparamsError(
            f"hparams is a {type(hparams).__name__}: load the file with easyedit_ext.{kind.__name__}.from_hparams"
        )
    hparams.check()
