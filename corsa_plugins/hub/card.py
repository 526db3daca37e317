"""The card of what was edited: of which model, by what method and settings, which facts, with which figures.

What a folder says itself is read from it (``state.json``, ``report.json``, ``corsa.json``, ``adapter_config.json``, the
manifest of a training); what it does not say, :class:`Made` tells. A base that is a folder is named by its last part
alone: where it lay on a disk is nobody else's matter. The licence of a model is its base's, and left to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from corsa_plugins.data.reading import read_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import CorsaError
from corsa_plugins.files import atomic_write_text
from corsa_plugins.hub.contents import CARD, Contents, Kind, contents_of
from corsa_plugins.manifest import MANIFEST
from corsa_plugins.model.bases import BASE
from corsa_plugins.model.identity import Fingerprint
from corsa_plugins.parsing import json_value, yaml_value
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["METHOD", "SETTINGS", "Made", "card_text", "fingerprint_of", "write_card"]

METHOD, SETTINGS = "method", "settings"
"""What the manifest of a training notes for its card, beside the fingerprint of the base."""

_SHOWN = 20
"""Facts that a card lists."""

_TAGS = ["knowledge-editing", "corsa-plugins"]

_USE = {
    Kind.ADAPTER: "PeftModel.from_pretrained(base, {name!r})  # of peft, on the base model",
    Kind.MODEL: "AutoModelForCausalLM.from_pretrained({name!r})  # of transformers",
    Kind.STATE: "corsa edit --model BASE --state FOLDER ...  # goes on from these edits, or takes some back",
    Kind.STORE: "corsa evaluate --model BASE --edited FOLDER ...  # the model is asked with these facts",
    Kind.REQUESTS: "corsa edit --model M --requests requests.jsonl ...",
}


@dataclass(frozen=True)
class Made:
    """How something was made, as far as its folder does not say it.

    Attributes:
        base: The model it was made from: a name on the Hub, or a folder.
        method: The editing method, by name.
        settings: Its settings, as plain data.
        figures: What was measured: a number, or a sentence, by what it is of.
        fingerprint: Of the base, in twelve digits (:func:`fingerprint_of`).
        facts: The requests.
    """

    base: str | None = None
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    facts: Sequence[EditRequest] = ()


def fingerprint_of(model: PreTrainedModel) -> str | None:
    """The digest of a model's fingerprint; ``None`` of one whose parts are not known."""
    try:
        return Fingerprint.of(model).digest
    except CorsaError:
        return None


def write_card(folder: str | Path, made: Made | None = None) -> Path:
    """Write ``README.md`` into a folder of this project, over a card that is there.

    Raises:
        ContentsError, OSError: The folder is none, or cannot be written to.
    """
    contents = contents_of(folder)
    return atomic_write_text(contents.path / CARD, card_text(contents, made))


def card_text(contents: Contents, made: Made | None = None, name: str = "") -> str:
    """The card, in Markdown, with the fields that the Hub reads in front.

    Args:
        contents: What it is of.
        made: What the folder does not say.
        name: Of the repository; by default that of the folder or the file.
    """
    earlier = _earlier(contents.card)
    told = _over(made or Made(), earlier.made)
    known = _known(contents, told)
    name = name or contents.path.stem
    base, is_on_hub = _called(known.made.base)
    facts = known.facts
    title = name.rpartition("/")[2]
    lines = [f"# {title}", ""]
    of = f" of {f'[{base}](https://huggingface.co/{base})' if is_on_hub else base}" if base else ""
    lines += [f"{contents.kind[:1].upper()}{contents.kind[1:]}{of}, made with corsa-plugins.", ""]
    lines += _rows({"base model": base, "its fingerprint": known.fingerprint, **known.about}, "", "")
    if known.made.figures:
        lines += ["## Figures", "", *_rows(known.made.figures, "what", "")]
    if facts:
        lines += ["## Facts", "", *_facts(facts)]
    elif earlier.facts and told.fingerprint == earlier.made.fingerprint:
        lines += ["## Facts", "", earlier.facts, ""]
    if known.made.settings:
        text = yaml.safe_dump(_plain(known.made.settings), sort_keys=False, allow_unicode=True).rstrip()
        lines += ["## Settings", "", "```yaml", text, "```", ""]
    lines += ["## Use", "", "```", _USE[contents.kind].format(name=name), "```", ""]
    lines += ["Made with " + ", ".join(f"{package} {found}" for package, found in _versions().items()) + "."]
    if contents.kind is not Kind.REQUESTS:
        lines += ["The licence is that of the base model."]
    return _front(contents.kind, base if is_on_hub else None, known.made.method) + "\n".join(lines) + "\n"


def _over(made: Made, earlier: Made) -> Made:
    """What is told, and where nothing is, what an earlier card tells; of another base it tells no fingerprint."""
    same = made.base is None or _called(made.base)[0] == (earlier.base or "")
    return replace(
        made,
        base=made.base or earlier.base,
        method=made.method or earlier.method,
        settings=made.settings or earlier.settings,
        fingerprint=made.fingerprint or (earlier.fingerprint if same else None),
    )


@dataclass(frozen=True)
class _Earlier:
    made: Made = field(default_factory=Made)
    facts: str = ""


def _earlier(card: Path | None) -> _Earlier:
    """What a card of ours tells that no other file of its folder does; its facts as it words them."""
    text = card.read_text(encoding="utf-8", errors="replace") if card is not None else ""
    front = re.match(r"---\n(.*?)^---$", text, re.S | re.M)
    fields = _fields(front)
    tags = list(fields.get("tags") or ()) if isinstance(fields, Mapping) else []
    if tags[: len(_TAGS)] != _TAGS:
        return _Earlier()
    settings = re.search(r"^## Settings\n\n```yaml\n(.*?)^```$", text, re.S | re.M)
    facts = re.search(r"^## Facts\n\n(.*?)\n*^## ", text, re.S | re.M)
    base, digest = (
        re.search(rf"^\| {row} \| (.*) \|$", text, re.M) for row in ("base model", "its fingerprint")
    )  # fmt: skip
    made = Made(
        base=base[1] if base else None,
        fingerprint=digest[1] if digest else None,
        method=next(iter(tags[len(_TAGS) :]), None),
        settings=_fields(settings),
    )
    return _Earlier(made, facts[1] if facts else "")


def _fields(part: re.Match[str] | None) -> Any:
    """What a part of a card says in YAML; nothing where somebody made something else of it, as they may."""
    try:
        return yaml_value(part[1]) if part else {}
    except ValueError:
        return {}


@dataclass(frozen=True)
class _Known:
    made: Made
    fingerprint: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    facts: Sequence[Mapping[str, Any]] = ()


def _known(contents: Contents, made: Made) -> _Known:
    """What is told, and what the folder says besides."""
    if contents.kind is Kind.REQUESTS:
        requests = [request.model_dump(mode="json") for request in read_requests(contents.path)]
        return _Known(made, about={"requests": str(len(requests))}, facts=requests)
    files = contents.files
    state = _read(contents.state)
    adapter, about = _read(files.get("adapter_config.json")), _read(files.get("corsa.json"))
    trained = _read(files.get(MANIFEST)) if contents.kind is Kind.ADAPTER else {}
    batches = state.get("batches", [])
    fingerprint = (state or about).get("fingerprint") or trained.get(BASE) or {}
    method = made.method or trained.get(METHOD)
    told: dict[str, str] = {"method": method or ""}
    if batches or about.get("batches"):
        named = [(each["name"], len(each["requests"]) if isinstance(each["requests"], list) else each["requests"])
                 for each in batches or about["batches"]]  # fmt: skip
        told["batches"] = ", ".join(f"{name} ({count} facts)" for name, count in named)
    if adapter.get("r"):
        told["rank, alpha"] = f"{adapter['r']}, {adapter.get('lora_alpha')}"
    figures = {**_effect(_read(files.get("report.json"))), **made.figures}
    settings = made.settings or (batches[-1].get("settings") if batches else trained.get(SETTINGS)) or {}
    base = made.base or fingerprint.get("name") or adapter.get("base_model_name_or_path")
    facts = [request for batch in batches for request in batch["requests"]]
    facts = facts or [fact.model_dump(mode="json") for fact in made.facts] or _requests(contents)
    digest = fingerprint.get("digest") or made.fingerprint
    made = replace(made, base=base, method=method, figures=figures, settings=settings)
    return _Known(made, digest, told, facts)


def _requests(contents: Contents) -> list[Mapping[str, Any]]:
    """Those that a training or an edit kept beside what it made, else those that its report names."""
    for name in ("requests.jsonl", "facts.jsonl"):
        if name in contents.files:
            lines = contents.files[name].read_text(encoding="utf-8").splitlines()
            return [json_value(line) for line in lines if line.strip()]
    return [row for row in _read(contents.files.get("report.json")).get("requests", []) if "target_new" in row]


def _effect(report: Mapping[str, Any]) -> dict[str, str]:
    """What the report says of its requests all together."""
    effect, rows = report.get("effect"), report.get("requests") or []
    if isinstance(effect, Mapping) and effect.get("text"):
        return {"after the update": str(effect["text"])}
    if rows and all("edited" in row for row in rows):
        count = sum(bool(row["edited"]) for row in rows)
        return {"after the edit": f"{count} of {len(rows)} facts answered as asked"}
    return {}


def _read(path: Path | None) -> dict[str, Any]:
    found = json_value(path.read_text(encoding="utf-8")) if path is not None else {}
    return found if isinstance(found, dict) else {}


def _called(base: str | None) -> tuple[str, bool]:
    """What the base is called, and whether that is a name on the Hub."""
    if not base:
        return "", False
    is_path = user_path(base).exists() or base.startswith((".", "~", "/")) or base.count("/") != 1
    return (Path(base).name, False) if is_path else (base, True)


def _rows(values: Mapping[str, str | None], first: str, second: str) -> list[str]:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items() if value]
    return [f"| {first} | {second} |", "| --- | --- |", *rows, ""] if rows else []


def _facts(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = facts[:_SHOWN]
    rows = [
        f"| {_cell(f.get('prompt'))} | {_cell(f.get('target_new'))} | {_cell(f.get('target_old'))} |" for f in shown
    ]
    more = [f"... and {len(facts) - _SHOWN} more.", ""] if len(facts) > _SHOWN else []
    return ["| prompt | answer | answer before |", "| --- | --- | --- |", *rows, "", *more]


def _cell(value: Any) -> str:
    return " ".join(str("" if value is None else value).split()).replace("|", "\\|")


def _plain(value: Any) -> Any:
    """As YAML writes it without tags."""
    return json.loads(json.dumps(value, default=str))


def _versions() -> dict[str, str]:
    found = {}
    for package in ("corsa-plugins", "torch", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _front(kind: Kind, base: str | None, method: str | None) -> str:
    fields: dict[str, Any] = {"tags": [*_TAGS, *([method] if method else [])]}
    if kind is Kind.REQUESTS:
        fields["configs"] = [{"config_name": "default", "data_files": "requests.jsonl"}]
    else:
        fields["library_name"] = "peft" if kind is Kind.ADAPTER else "transformers"
    if base:
        fields["base_model"] = base
        if kind is not Kind.STATE:
            fields["base_model_relation"] = "adapter" if kind is Kind.ADAPTER else "finetune"
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n\n"
