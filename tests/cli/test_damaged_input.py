"""Missing, cut and damaged input of every command, and output that cannot be written: one message that names the file,
exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.alphaedit.statistics.collect import collect_statistics
from corsa_plugins.cli.app import main
from corsa_plugins.data.code_problems import write_problems
from corsa_plugins.data.reading import write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe
from corsa_plugins.sandbox import Guarantee
from tests.conftest import DOCUMENTS
from tests.support.adapters import PARTS
from tests.support.code import INC, UPDATES
from tests.support.edited import changed
from tests.support.flips import flip
from tests.support.samples import DATA

QUICK = """
layers: [0]
null_space: {by: share, value: 0.6}
ridge: 0.1
ridge_unit: relative
values: {steps: 3, lr: 0.5, lr_unit: relative}
n_contexts: 0
"""
REQUESTS = [
    EditRequest(prompt=f"The capital of {land} is", subject=land, target_new="Oslo", target_old=old, case_id=land)
    for land, old in (("France", "Paris"), ("Italy", "Rome"))
]


def call(folder: Path, line: str, output: Path | None = None) -> int:
    """``corsa`` with the words of a line, in which @ is the folder, and OUT the output, by default in it."""
    words = [word.replace("OUT", str(output or folder / "out")).replace("@", str(folder)) for word in shlex.split(line)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


NEEDS = {"merge": "mergekit", "train": "trl"}
RUN = "--device cpu -q"
MEASURED = f"-r @/requests.jsonl --untouched @/untouched.jsonl --max-new-tokens 4 {RUN}"
EDITED = f"-r @/requests.jsonl -s @/stats --settings @/quick.yaml {RUN}"
ADAPTERS = f"-m @/model -a @/capitals -a @/people --max-new-tokens 4 {RUN}"
PARTED = "-r @/capitals/requests.jsonl -r @/people/requests.jsonl"
SWEPT = "--base @/model --edited @/other --weights 0.5 --densities 0.2 --no-plot"
UPDATED = f"-m @/model -r @/requests.jsonl --method rsft --settings rsft=@/rsft.yaml {RUN}"
DRAWN = "--least 2 --size 1 --n-rounds 1 --watched 1"
MADE = {
    "edited": f"edit -m @/model {EDITED} -o @/edited",
    "delta": f"edit -m @/model {EDITED} --delta-only -o @/delta",
    "results": f"evaluate -m @/model {MEASURED} -o @/results",
    "exported": "export @/edited -a @/exported -q",
    "swept": f"merge-sweep {SWEPT} {MEASURED} -o @/swept",
    "ran": f"protocol single {UPDATED} -o @/ran",
    "known": f"atlas -m @/model --facts @/facts.jsonl {DRAWN} -o @/known {RUN}",
}
"""What commands leave that others read."""

COMMANDS = {
    "evaluate": f"evaluate -m @/model {MEASURED} -o OUT",
    "evaluate-adapter": f"evaluate -m @/model -a @/capitals {MEASURED} -o OUT",
    "evaluate-edited": f"evaluate -m @/model --edited @/edited {MEASURED} -o OUT",
    "evaluate-delta": f"evaluate -m @/model --edited @/delta {MEASURED} -o OUT",
    "evaluate-baseline": f"evaluate -m @/model --baseline @/results {MEASURED} -o OUT",
    "edit": f"edit -m @/model {EDITED} --delta-only -o OUT",
    "edit-rsft": f"edit -m @/model -r @/requests.jsonl --method rsft --settings @/rsft.yaml {RUN} -o OUT",
    "revert": f"edit -m @/model --state @/edited --revert all {RUN} -o OUT",
    "export": "export @/edited -a OUT -q",
    "import": f"import @/exported -m @/model -o OUT {RUN}",
    "diagnose": f"diagnose -m @/model {EDITED} -o OUT",
    "stats": f"stats -m @/model --text @/text.txt --layers 0 --tokens 1k -o OUT {RUN}",
    "stats-shown": "stats @/stats",
    "conflict-set": f"conflict-set inconsistent -m @/model {EDITED} --size 1 -o OUT",
    "convert": "convert --format counterfact @/counterfact.json OUT",
    "split": "split @/requests.jsonl --parts 2 -o OUT",
    "evaluate-adapters": f"evaluate-adapters {ADAPTERS} {PARTED} --router nearest -o OUT",
    "evaluate-adapters-described": (
        f"evaluate-adapters {ADAPTERS} {PARTED} --router label --descriptions @/descriptions.json -o OUT"
    ),
    "route": f"route {ADAPTERS} --router nearest Who",
    "evaluate-code": (  # whose programs here are the tests' own
        "evaluate-code --reference --problems @/problems.jsonl --humaneval @/humaneval.jsonl -o OUT -q "
        f"--unenforced {','.join(Guarantee)}"
    ),
    "merge-adapters": "merge-adapters @/capitals @/people -m @/model -o OUT",
    "merge": "merge @/recipe.yaml OUT --quiet",
    "merge-sweep": f"merge-sweep {SWEPT} {MEASURED} -o OUT",
    "merge-sweep-again": f"merge-sweep {SWEPT} {MEASURED} -o @/swept",
    "protocol": f"protocol single {UPDATED} -o OUT",
    "protocol-again": f"protocol single {UPDATED} -o @/ran",
    "report": "report @/results -o OUT",
    "report-edit": "report @/edited -o OUT",
    "atlas": f"atlas -m @/model --facts @/facts.jsonl {DRAWN} -o OUT {RUN}",
    "atlas-again": f"atlas -m @/model --facts @/facts.jsonl {DRAWN} -o @/known {RUN}",
    "atlas-known": f"atlas -m @/model --facts @/known/known.jsonl {DRAWN} -o OUT {RUN}",
    "train": (
        "train --requests @/requests.jsonl --model_name_or_path @/model --output_dir OUT --use_cpu true --bf16 false "
        "--max_steps 1 --report_to none"
    ),
    "testbed": "testbed -o OUT",
    "demo": "demo --size 2 --method alphaedit+ --jobs 1 -o OUT",
}

STATISTICS = {"stats/statistics.json": "missing cut flip", "stats/layer_0.safetensors": "missing cut flip"}
DAMAGE: dict[str, dict[str, str]] = {
    "evaluate": {
        "requests.jsonl": "missing cut garbled", "untouched.jsonl": "missing cut garbled",
        "model/config.json": "missing cut", "model/model.safetensors": "missing cut",
        "model/tokenizer.json": "missing cut", "model/tokenizer_config.json": "garbled",
    },
    "evaluate-adapter": {
        "capitals/adapter_config.json": "missing cut", "capitals/adapter_model.safetensors": "missing cut",
    },
    "evaluate-edited": {
        "edited/model/model.safetensors": "missing cut flip", "edited/model/config.json": "missing cut flip",
        "edited/model/manifest.json": "cut",
    },
    "evaluate-delta": {"delta/state/state.json": "cut flip", "delta/state/state.safetensors": "missing cut flip"},
    "evaluate-baseline": {
        "results/records.jsonl": "missing cut flip", "results/untouched.jsonl": "missing cut flip",
        "results/summary.json": "missing cut flip",
    },
    "edit": {
        **STATISTICS, "stats/layer_0.eigen.safetensors": "missing cut flip", "stats/manifest.json": "cut",
        "quick.yaml": "missing garbled",
    },
    "edit-rsft": {"rsft.yaml": "missing cut"},
    "revert": {"edited/state/state.json": "cut flip", "edited/state/state.safetensors": "missing cut flip"},
    "export": {"edited/state/state.json": "cut flip", "edited/state/state.safetensors": "missing cut flip"},
    "import": {
        "exported/adapter_model.safetensors": "missing cut flip", "exported/adapter_config.json": "missing cut flip",
        "exported/corsa.json": "cut flip",
    },
    "diagnose": {**STATISTICS, "requests.jsonl": "missing cut"},
    "stats": {"text.txt": "missing empty garbled"},
    "stats-shown": {"stats/statistics.json": "missing cut flip"},
    "conflict-set": {"requests.jsonl": "missing cut"},
    "convert": {"counterfact.json": "missing cut garbled"},
    "split": {"requests.jsonl": "missing cut"},
    "evaluate-adapters": {"capitals/requests.jsonl": "missing cut", "capitals/adapter_config.json": "missing cut"},
    "evaluate-adapters-described": {"descriptions.json": "missing cut garbled"},
    "route": {"capitals/requests.jsonl": "cut", "capitals/adapter_model.safetensors": "missing cut"},
    "evaluate-code": {"problems.jsonl": "missing cut", "humaneval.jsonl": "missing cut"},
    "merge-adapters": {
        "capitals/adapter_model.safetensors": "missing cut", "capitals/adapter_config.json": "missing cut",
    },
    "merge": {"recipe.yaml": "missing cut", "other/model.safetensors": "missing cut", "other/config.json": "missing"},
    "merge-sweep": {"untouched.jsonl": "missing cut"},
    "merge-sweep-again": {"swept/sweep.jsonl": "flip"},
    "protocol": {"rsft.yaml": "missing cut"},
    "protocol-again": {"ran/rsft/run.json": "cut flip", "ran/rsft/updates/001-update/update.json": "missing cut flip"},
    "report": {"results/records.jsonl": "missing cut flip", "results/summary.json": "cut flip"},
    "report-edit": {"edited/report.json": "missing cut flip"},
    "atlas": {"facts.jsonl": "missing cut"},
    "atlas-again": {"known/atlas.json": "cut garbled flip", "known/asked.jsonl": "flip"},
    "atlas-known": {"known/known.jsonl": "missing cut flip", "known/atlas.json": "cut flip"},
    "train": {"requests.jsonl": "missing cut", "model/config.json": "cut", "model/tokenizer.json": "missing"},
}  # fmt: skip
"""By command: files, and what becomes of each."""


@pytest.fixture(scope="module")
def world(
    _session_taught: LlamaForCausalLM,
    _session_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with everything that commands read."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("world")
    for name, model in (("model", _session_taught), ("other", changed(_session_taught, 1))):
        model.save_pretrained(folder / name)
        _session_tokenizer.save_pretrained(folder / name)
    for name, requests in PARTS.items():
        torch.manual_seed(0)
        settings = peft.LoraConfig(r=2, target_modules="all-linear")
        adapted = peft.get_peft_model(changed(_session_taught, 0, scale=0.0), settings)
        adapted.save_pretrained(folder / name)
        write_requests(folder / name / "requests.jsonl", requests)
    write_requests(folder / "requests.jsonl", REQUESTS)
    write_probes(folder / "untouched.jsonl", [Probe(prompt="The capital of Spain is", answer="Madrid")])
    write_problems(folder / "problems.jsonl", UPDATES)
    (folder / "humaneval.jsonl").write_text(json.dumps({**INC.model_dump(), "plus_input": []}) + "\n")
    (folder / "text.txt").write_text("".join(text.replace("\n", " ") + "\n" for text in DOCUMENTS))
    (folder / "quick.yaml").write_text(QUICK)
    (folder / "rsft.yaml").write_text("{layer: 1, epochs: 1, steps: 2, learning_rate: 3.0e-3}")
    (folder / "descriptions.json").write_text('{"capitals": "France", "people": "Anna"}')
    (folder / "counterfact.json").write_bytes((DATA / "counterfact.json").read_bytes())
    (folder / "recipe.yaml").write_text(
        f"merge_method: scaled_pruned_delta\nbase_model: {folder / 'model'}\nmodels: [{{model: {folder / 'other'}}}]\n"
    )
    forms = {"statements": ["The capital of {} is"], "questions": ["The capital of {} is"]}
    facts = [
        {"relation": "capital", "subject": land, "answer": city, **forms}
        for land, city in (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"))
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    collect_statistics(_session_taught, _session_tokenizer, DOCUMENTS * 2, (0,), n_tokens=1500, out=folder / "stats")
    for line in MADE.values():
        assert call(folder, line) == 0, line
    return folder


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "flip":
        flip(file, 8 * (len(content) // 2) + 1)
    else:
        half = len(content) // 2
        file.write_bytes({"empty": b"", "cut": content[: half - 3], "garbled": content[:half] + b"\xff\xfe"}[how])


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("command", DAMAGE)
def test_a_damaged_file_is_named_and_nothing_is_lost(
    command: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is neither the output nor the damaged file is as it was; what is read again is the file, once restored."""
    if command in NEEDS:
        pytest.importorskip(NEEDS[command])
    for number, (name, damages) in enumerate(DAMAGE[command].items()):
        file, good = world / name, (world / name).read_bytes()
        for how in damages.split():
            try:
                damage(file, how)
                before = contents(world)
                capsys.readouterr()
                code = call(world, COMMANDS[command], tmp_path / f"{number}-{how}")
                said = capsys.readouterr().err
                assert (code, contents(world)) == (2, before), (name, how, said)
                assert said.count("error: ") == 1, said
                assert file.name in said, (how, said)
            finally:
                file.write_bytes(good)


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder in which nothing can be made, by anybody."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    for place in (folder, Path("/sys")):  # permissions are nothing to root, and the kernel's own files are
        try:
            (place / "corsa").mkdir()
            (place / "corsa").rmdir()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return place
    pytest.skip("everything can be written here")


@pytest.mark.parametrize("command", [name for name, line in COMMANDS.items() if "OUT" in line])
def test_an_output_that_cannot_be_written_is_named_and_nothing_is_lost(
    command: str, world: Path, unwritable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command in NEEDS:
        pytest.importorskip(NEEDS[command])
    before = contents(world)
    capsys.readouterr()
    code = call(world, COMMANDS[command], unwritable / "made")
    said = capsys.readouterr().err
    assert (code, contents(world)) == (2, before), said
    assert str(unwritable / "made") in said
    assert not os.path.lexists(unwritable / "made")


MADE_BY = {
    "edited/state/manifest.json": "versions",
    "edited/state/state.json": "fingerprint.digest batches.0.settings batches.0.requests",
    "edited/report.json": "settings",
    "edited/manifest.json": "versions settings base.digest",
    "edit-rsft/manifest.json": "versions seed method.settings base.digest requests",
    "known/atlas.json": "versions seed settings.size model precision sha256",
    "conflict-set.about.json": "versions seed settings.kind editor.layers fingerprint.digest candidates sha256",
    "train/manifest.json": "versions seed arguments.max_steps method settings.learning_rate base.digest model requests",
    "edited/model/manifest.json": "versions",
    "stats/manifest.json": "versions",
    "stats/statistics.json": "fingerprint.digest about.seed about.n_tokens about.text about.dtype",
    "results/summary.json": "versions settings inputs.model inputs.tokenizer inputs.requests",
    "exported/manifest.json": "versions",
    "exported/corsa.json": "fingerprint.digest batches",
    "merge/manifest.json": "versions",
    "protocol/rsft/run.json": "model tokenizer seed method.settings sets.0.requests",
    "protocol/rsft/summary.json": "versions method",
    "protocol/rsft/updates/001-update/update.json": "model",
    "protocol/rsft/updates/001-update/manifest.json": "versions",
}
"""By file: values that are there and say something."""


def test_what_is_written_says_what_it_was_made_by_and_of(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    pytest.importorskip("trl")
    for name in ("merge", "merge-sweep", "protocol", "edit-rsft", "conflict-set", "train"):
        assert call(world, COMMANDS[name], tmp_path / name) == 0
    for name, paths in MADE_BY.items():
        content = json.loads((world / name if (world / name).exists() else tmp_path / name).read_text())
        for path in paths.split():
            value = content
            for step in path.split("."):
                value = value[int(step) if isinstance(value, list) else step]
            assert value not in (None, "", [], {}), (name, path)
            if path == "versions":
                assert {"corsa-plugins", "torch", "transformers"} <= set(value)
    assert (tmp_path / "merge" / "mergekit_config.yml").read_text() == (world / "recipe.yaml").read_text()
    head = json.loads((tmp_path / "merge-sweep" / "sweep.jsonl").read_text().splitlines()[0])
    assert {"requests", "untouched", "base", "edited", "tokenizer", "settings"} <= set(head)
    assert "transformers" in (tmp_path / "merge-sweep" / "best.yaml").read_text().splitlines()[0]
