"""What the hyper-parameters of both methods share: reading, checking, and the fields ``BaseEditor`` itself reads."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from corsa_plugins.errors import SettingError

__all__ = ["HparamsError", "HyperParams", "check_template", "expect"]


class HparamsError(SettingError):
    """Hyper-parameters that cannot be used; the message names the file, the field, and what to do."""


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

    model_name: Any
    device: int | str
    alg_name: str
    max_length: int = 40
    batch_size: int = 1
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
        problems = []
        for name, adapter in _adapters(type(self)).items():  # type: ignore[arg-type]  # classes are hashable
            value = getattr(self, name)
            if isinstance(value, bool) and not isinstance(getattr(type(self), name, None), bool):
                problems.append(f"{name} is {value}: it is no switch, give it a value")
                continue
            if isinstance(value, list) and any(isinstance(one, bool) for one in value):
                problems.append(f"{name} is {value}: it has no switches in it, give values")
                continue
            try:
                setattr(self, name, adapter.validate_python(value))
            except ValidationError as error:
                problems.append(f"{name} is {value!r}: {error.errors()[0]['msg'].lower()}")
        if problems:
            raise HparamsError("; ".join(problems))
        _check_device(self.device)
        _check_model_name(self.model_name)
        if self.batch_size < 1:
            raise HparamsError(f"batch_size is {self.batch_size}: it must be at least 1")

    @classmethod
    def from_hparams(cls, hparams_name_or_path: str | os.PathLike[str]) -> Self:
        """Read a YAML or JSON file; ``.yaml`` may be left out.

        Raises:
            HparamsError: There is no such file, it cannot be read, has unknown fields, lacks required ones, or a
                value cannot be; the message names the file and every such field.
        """
        path = Path(hparams_name_or_path).expanduser()
        if path.suffix not in (".yaml", ".yml", ".json"):
            path = path.with_name(path.name + ".yaml")
        return cls.from_dict(_read(path), where=f"{path}: ")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "") -> Self:
        """From a mapping of fields; ``where`` goes in front of the messages.

        Raises:
            HparamsError: As for :meth:`from_hparams`.
        """
        known = {field.name: field for field in fields(cls)}
        problems = [cls._unknown(str(name), list(known)) for name in data if name not in known]
        missing = [
            name
            for name, field in known.items()
            if name not in data and field.default is MISSING and field.default_factory is MISSING
        ]
        if missing:
            problems.append(f"missing: {', '.join(missing)}")
        if problems:
            raise HparamsError(f"{where}{'; '.join(problems)}")
        try:
            return cls(**data)
        except SettingError as error:
            raise HparamsError(f"{where}{error}") from error

    @classmethod
    def _unknown(cls, name: str, known: list[str]) -> str:
        close = [cls.FOREIGN[name]] if name in cls.FOREIGN else difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else f" (the fields are {', '.join(known)})"
        return f"unknown field {name}{hint}"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; a pair (model, tokenizer) is the same objects, not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@cache
def _adapters(kind: type[HyperParams]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind)
    config = ConfigDict(allow_inf_nan=False)
    return {f.name: TypeAdapter(hints[f.name], config=config) for f in fields(kind) if f.name != "model_name"}


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise HparamsError(f"{path}: no such file; easyedit_ext.hparams_path(method, model) finds the packaged ones")
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise HparamsError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, Mapping) or not data:
        raise HparamsError(f"{path}: it should be a mapping of fields, such as alg_name: AlphaEditPlus")
    return data


def _check_device(device: int | str) -> None:
    import torch

    try:
        good = device >= 0 if isinstance(device, int) else device.isdigit() or bool(torch.device(device).type)
    except RuntimeError:
        good = False
    if not good:
        raise HparamsError(f"device is {device!r}: give the number of a GPU, cpu, or a name such as cuda:1")


def _check_model_name(model_name: Any) -> None:
    if isinstance(model_name, str) and model_name:
        return
    pair = isinstance(model_name, tuple | list) and len(model_name) == 2
    if not pair or not hasattr(model_name[0], "parameters") or not callable(model_name[1]):
        shown = type(model_name).__name__ if not isinstance(model_name, str | int | float) else repr(model_name)
        raise HparamsError(f"model_name is {shown}: give a name, a folder, or a pair (model, tokenizer)")


def check_template(name: str, template: str | None) -> None:
    """See that a name of modules, if one is given, has ``{}`` once and no other braces.

    Raises:
        HparamsError: It has not; the message names the field.
    """
    if template is not None and (template.count("{}") != 1 or set("{}") & set(template.replace("{}", ""))):
        raise HparamsError(
            f"{name} is {template!r}: write {{}} once, for the number of the block, as in 'model.layers.{{}}.mlp', or "
            "leave it out"
        )


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
