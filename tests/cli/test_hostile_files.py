"""Files of strangers and odd words, through the commands: nothing runs, leads elsewhere, or moves the cursor."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import LoadingError
from corsa_plugins.model.loading import load_model
from tests.support.command import Command
from tests.support.edited import changed, stored

RUN = ("--device", "cpu", "-q")
needs_mergekit = pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that a pickle of :func:`evil` makes when it is run."""
    return tmp_path / "it ran"


def evil(file: Path, trap: Path) -> None:
    """Write a pickle as PyTorch does, which makes a file where it is read without care."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(trap), "w"))

    torch.save({"model.norm.weight": Evil()}, file)


def test_the_trap_works(tmp_path: Path, trap: Path) -> None:
    evil(tmp_path / "evil.bin", trap)
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert trap.exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def merged(world: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The world with another model, and a recipe that merges it."""
    changed(taught_llama, 1).save_pretrained(world / "other")
    tiny_tokenizer.save_pretrained(world / "other")
    recipe(world)
    return world


def recipe(world: Path, **settings: object) -> Path:
    models = [{"model": str(world / "other"), "parameters": settings.pop("parameters", {})}]
    content = {"merge_method": "scaled_pruned_delta", "base_model": str(world / "model"), "models": models, **settings}
    (world / "recipe.yaml").write_text(yaml.safe_dump(content))
    return world / "recipe.yaml"


@pytest.mark.parametrize("command", ["evaluate", "merge-adapters"])
def test_a_pickled_adapter_is_not_run(command: str, adapters_folder: Path, corsa: Command, trap: Path) -> None:
    capitals = adapters_folder / "capitals"
    (capitals / "adapter_model.safetensors").unlink()
    evil(capitals / "adapter_model.bin", trap)
    out, model = adapters_folder / "out", adapters_folder / "model"
    given = {
        "evaluate": ("-m", model, "-a", capitals, "-r", capitals / "requests.jsonl", "-o", out, *RUN),
        "merge-adapters": (capitals, adapters_folder / "people", "-m", model, "-o", out),
    }[command]
    before = contents(adapters_folder)
    done = corsa(command, *given)
    assert (done.exit_code, contents(adapters_folder)) == (2, before), done.stderr
    assert "capitals" in done.stderr
    assert not trap.exists()


@needs_mergekit
@pytest.mark.parametrize("option", [(), ("--lazy-unpickle",)])
def test_a_pickled_model_is_not_run_by_a_merge(
    option: tuple[str, ...], merged: Path, corsa: Command, trap: Path
) -> None:
    (merged / "other" / "model.safetensors").unlink()
    evil(merged / "other" / "pytorch_model.bin", trap)
    before = contents(merged)
    done = corsa("merge", merged / "recipe.yaml", merged / "out", "--quiet", *option)
    assert (done.exit_code, contents(merged)) == (2, before), done.stderr
    assert "pytorch_model.bin" in done.stderr
    assert not trap.exists()


def training(world: Path, **changes: object) -> list[object]:
    given = {
        "requests": world / "requests.jsonl", "model_name_or_path": world / "model", "output_dir": world / "trained",
        "use_cpu": "true", "bf16": "false", "max_steps": 2, "report_to": "none", "fill_target_old": "false", **changes,
    }  # fmt: skip
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", value))]


@needs_trl
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_pickle_in_a_checkpoint_is_not_run(name: str, world: Path, corsa: Command, trap: Path) -> None:
    done = corsa(*training(world, save_steps=1, max_steps=1))
    assert done.exit_code == 0, done.stderr
    checkpoint = world / "trained" / "checkpoint-1"
    evil(checkpoint / name, trap)
    for manifest in (True, False):  # as one of ours that was changed, and as a stranger's
        if not manifest:
            (checkpoint / "manifest.json").unlink()
        done = corsa(*training(world, resume_from_checkpoint=checkpoint, output_dir=world / "again"))
        assert done.exit_code == 2, done.stderr
        assert "checkpoint-1" in done.stderr
        assert not trap.exists()
        assert not list((world / "again").glob("adapter_*"))


@needs_trl
def test_to_go_on_from_nothing_is_refused_by_name(world: Path, corsa: Command) -> None:
    done = corsa(*training(world, resume_from_checkpoint=world / "nothing"))
    assert done.exit_code == 2
    assert f"resume_from_checkpoint={world / 'nothing'}: there is no such folder" in done.stderr
    assert not list((world / "trained").glob("adapter_*"))


@pytest.mark.parametrize(
    "command", [pytest.param("merge", marks=needs_mergekit), pytest.param("train", marks=needs_trl), "evaluate"]
)
def test_the_code_that_comes_with_a_model_is_not_run(command: str, merged: Path, corsa: Command, trap: Path) -> None:
    (merged / "model" / "theirs.py").write_text(f"open({str(trap)!r}, 'w')\nclass Theirs: pass\nclass Config: pass\n")
    config = json.loads((merged / "model" / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Theirs"}}
    (merged / "model" / "config.json").write_text(json.dumps({**config, "model_type": "theirs"}))
    done = corsa(
        *{
            "merge": ("merge", merged / "recipe.yaml", merged / "out", "--quiet"),
            "train": training(merged),
            "evaluate": (
                "evaluate",
                "-m",
                merged / "model",
                "-r",
                merged / "requests.jsonl",
                "-o",
                merged / "out",
                *RUN,
            ),
        }[command]
    )
    assert done.exit_code == 2, done.stderr
    assert not trap.exists()
    assert not (merged / "out").exists()


@needs_mergekit
def test_a_weight_that_the_precision_cannot_hold_writes_nothing(merged: Path, corsa: Command) -> None:
    before = contents(merged)
    recipe(merged, parameters={"weight": 1e8, "density": 1.0}, dtype="float16")
    done = corsa("merge", merged / "recipe.yaml", merged / "out", "--quiet")
    assert done.exit_code == 2, done.stderr
    assert "float16" in done.stderr
    recipe(merged)
    assert contents(merged) == before


@needs_mergekit
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_several_gpus_where_there_is_none(merged: Path, corsa: Command) -> None:
    done = corsa("merge", merged / "recipe.yaml", merged / "out", "--quiet", "--multi-gpu")
    assert done.exit_code == 2
    assert "CUDA" in done.stderr
    assert not (merged / "out").exists()


@needs_mergekit
@pytest.mark.parametrize("name", ["a+b", "user@host", "of two words"])
def test_models_in_folders_of_odd_names_are_merged(name: str, merged: Path, corsa: Command) -> None:
    """By a recipe that a sweep has written, which quotes what mergekit takes for something else."""
    (merged / name).mkdir()
    for model in ("model", "other"):
        shutil.copytree(merged / model, merged / name / model)
    done = corsa(
        "merge-sweep", "--base", merged / name / "model", "--edited", merged / name / "other", "-r",
        merged / "requests.jsonl", "--untouched", merged / "untouched.jsonl", "-o", merged / name / "sweep",
        "--weights", "0.01", "--densities", "1", "--floor", "0", "--no-plot", *RUN,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    done = corsa("merge", merged / name / "sweep" / "best.yaml", merged / "out", "--quiet")
    assert done.exit_code == 0, done.stderr
    base, other, out = (stored(merged / model) for model in ("model", "other", "out"))
    weight = yaml.safe_load((merged / name / "sweep" / "best.yaml").read_text())["models"][0]["parameters"]["weight"]
    key = "model.layers.0.mlp.down_proj.weight"
    torch.testing.assert_close(out[key], base[key] + weight * (other[key] - base[key]), rtol=1e-4, atol=1e-5)


def test_a_sweep_of_another_edited_model_keeps_what_was_found(
    merged: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, corsa: Command
) -> None:
    changed(taught_llama, 2).save_pretrained(merged / "third")
    tiny_tokenizer.save_pretrained(merged / "third")
    given = [
        "merge-sweep", "--base", merged / "model", "-r", merged / "requests.jsonl", "--untouched",
        merged / "untouched.jsonl", "-o", merged / "sweep", "--weights", "0.5", "--densities", "0.2", "--floor", "0",
        "--no-plot", *RUN,
    ]  # fmt: skip
    assert corsa(*given, "--edited", merged / "other").exit_code == 0
    before = contents(merged / "sweep")
    done = corsa(*given, "--edited", merged / "third")
    assert done.exit_code == 2
    assert "sweep.jsonl holds a sweep with other edited" in done.stderr
    assert contents(merged / "sweep") == before
    assert yaml.safe_load((merged / "sweep" / "best.yaml").read_text())["models"][0]["model"] == str(merged / "other")


@pytest.mark.parametrize("label", ["[/x]", "[red]", "[bold]a[/bold] :smile:"])
def test_a_label_is_no_markup(label: str, world: Path, corsa: Command) -> None:
    given = ("-m", world / "model", "-r", world / "requests.jsonl", "--untouched", world / "untouched.jsonl", *RUN)
    done = corsa("evaluate", *given, "-o", world / "out", "--label", label)
    assert done.exit_code == 0, done.stderr
    assert label in done.output
    assert json.loads((world / "out" / "summary.json").read_text())["label"] == label


MOVES = "\x1b[2J\x1b]0;mine\x07\r\u202e"


def test_control_characters_do_not_reach_the_terminal(corsa_with_adapters: Command, adapters_folder: Path) -> None:
    """From a file of descriptions, of requests, and of records that are converted."""
    odd = {"capitals": f"lands{MOVES}of Europe", "people": "persons"}
    (adapters_folder / "odd.json").write_text(json.dumps(odd))
    done = corsa_with_adapters(
        "evaluate-adapters", "--router", "label", "--descriptions", "DIR/odd.json", "--describe-only", "-o", "DIR/out"
    )
    assert done.exit_code == 0, done.stderr
    assert "lands" in done.output
    assert not set(MOVES.replace("[2J", "").replace("]0;mine", "")) & set(done.output + done.stderr)


def test_control_characters_of_a_problem_do_not_reach_the_terminal(tmp_path: Path, corsa: Command) -> None:
    request = {"prompt": f"a{MOVES}b is", "subject": "a", "target_new": "c", "case_id": f"x{MOVES}"}
    (tmp_path / "facts.jsonl").write_text(
        "".join(json.dumps({**request, "target_new": answer}) + "\n" for answer in ("c", "d"))
    )
    done = corsa("split", tmp_path / "facts.jsonl", "--parts", 2, "-o", tmp_path / "parts")
    assert done.exit_code == 2
    assert "contradiction" in done.stderr
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(done.output + done.stderr)


def test_an_overlong_prompt_is_not_repeated_whole(world: Path, corsa: Command) -> None:
    long = EditRequest(prompt="The capital of France, " * 4500 + "is", subject="France", target_new="Rome")
    write_requests(world / "long.jsonl", [long])
    (world / "rsft.yaml").write_text("{layer: 1, epochs: 1, steps: 1}")
    done = corsa(
        "edit", "-m", world / "model", "-r", world / "long.jsonl", "--method", "rsft", "--settings",
        world / "rsft.yaml", "-o", world / "out", *RUN,
    )  # fmt: skip
    assert done.exit_code == 2
    assert "shorten" in done.stderr
    assert len(done.stderr + done.output) < 2000


def test_names_from_files_do_not_leave_the_output_folder(world: Path, corsa: Command) -> None:
    outside = {"prompt": "The capital of Italy is", "target_new": "Oslo", "case_id": "../../outside"}
    absolute = {"prompt": "The capital of France is", "target_new": "Rome", "case_id": str(world / "absolute")}
    (world / "odd.jsonl").write_text(json.dumps(outside) + "\n" + json.dumps(absolute) + "\n")
    (world / "rsft.yaml").write_text("{layer: 1, epochs: 1, steps: 1}")
    before, inner = contents(world.parent), world / "in" / "here"
    inner.mkdir(parents=True)
    asked = ("-m", world / "model", "-r", world / "odd.jsonl", *RUN)
    trained = ("--method", "rsft", "--settings")
    for words in (
        ("evaluate", *asked, "-o", inner / "evaluated"),
        ("edit", *asked, *trained, world / "rsft.yaml", "-o", inner / "edited"),
        ("protocol", "single", *asked, *trained, f"rsft={world / 'rsft.yaml'}", "-o", inner / "ran"),
        ("split", world / "odd.jsonl", "--parts", 2, "-o", inner / "parts"),
    ):
        done = corsa(*words)
        assert done.exit_code == 0, (words[0], done.stderr)
    there = contents(world.parent)
    assert {file: content for file, content in there.items() if not file.is_relative_to(inner)} == before
    assert {r.case_id for r in read_requests(world / "odd.jsonl")} == {"../../outside", str(world / "absolute")}


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "a/../../secret.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(name: str, world: Path, corsa: Command) -> None:
    folder = world / "model"
    tensors = stored(folder)
    if name.startswith("/"):
        name = f"{world}{name}"
    save_file(tensors, world / "secret.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadingError, match=r"model\.safetensors\.index\.json names .*secret\.safetensors, which is"):
        load_model(folder, device="cpu")
    done = corsa("evaluate", "-m", folder, "-r", world / "requests.jsonl", "-o", world / "out", *RUN)
    assert done.exit_code == 2
    assert "index.json" in done.stderr
