"""``--accelerate_config``: a training in the processes of ``accelerate launch``, by a configuration's name."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.cli.app import main
from corsa_plugins.data.reading import write_requests
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import read_history
from tests.trl_ext.test_sharding import REQUESTS, train_arguments
from tests.trl_ext.test_zero import installed
from trl_ext.launching import CONFIGS, configuration, configuration_names, launch_command


def corsa(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["train", *arguments])
    return int(done.value.code or 0)


@pytest.mark.parametrize(
    "name",
    [
        "multi_gpu",
        pytest.param("fsdp2", marks=pytest.mark.slow),
        pytest.param("zero1", marks=[pytest.mark.slow, installed]),
        pytest.param("zero2", marks=[pytest.mark.slow, installed]),
        pytest.param("zero3", marks=[pytest.mark.slow, installed]),
    ],
)
def test_two_processes_by_name(
    name: str,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    facts = [request for request in REQUESTS if request.target_old][:2]
    write_requests(tmp_path / "requests.jsonl", facts)
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    arguments = train_arguments(tmp_path, "out", num_train_epochs=1, history_looks=1)["arguments"]
    launcher = ["--num_processes=2", "--main_process_port", "0", "--mixed_precision", "no"]
    assert corsa("--accelerate_config", name, *launcher, *arguments) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert read_history(tmp_path / "out" / "history.json")[-1]["step"] == 1  # two pairs, one a process


def test_every_configuration_is_one_that_training_takes() -> None:
    assert {"fsdp2", "multi_gpu", "single_gpu", "zero1", "zero2", "zero3"} == set(configuration_names())
    for name in configuration_names():
        settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        if settings["distributed_type"] == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
            with pytest.raises(SettingError, match="DeepSpeed, which is not installed: pip install deepspeed, or use"):
                configuration(name)
        else:
            assert configuration(name) == CONFIGS / f"{name}.yaml"
        assert settings["num_machines"] == 1
        assert settings.get("fsdp_config", {}).get("fsdp_version", 2) == 2
        assert f"zero{settings.get('deepspeed_config', {}).get('zero_stage', '')}" in (name, "zero")
    example = Path(__file__).parents[2] / "examples" / "accelerate_fsdp2.yaml"
    assert yaml.safe_load(example.read_text()) == yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())


def test_what_is_the_launchers_and_what_is_the_trainings(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 3\n")
    command, rest = launch_command(
        ["--config", "run.yaml", "--num_processes", "4", f"--accelerate_config={own}", "--lora_r", "8"]
    )
    assert rest == ["--config", "run.yaml", "--lora_r", "8"]
    assert command[2:] == [
        "accelerate.commands.launch", "--config_file", str(own), "--num_processes", "4", "-m", "trl_ext.train", *rest,
    ]  # fmt: skip


def test_what_cannot_be_launched_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, message in (
        (["fsdp3"], "did you mean fsdp2"),
        (["tpu"], "there are fsdp2, multi_gpu, single_gpu, zero1, zero2, zero3"),
        ([], "--accelerate_config: give a value"),
        (["multi_gpu", "--num_processes"], "--num_processes: give a value"),
    ):
        with pytest.raises(SettingError, match=message):
            launch_command(["--accelerate_config", *given])
    assert corsa("--accelerate_config", "multi_gpu", "--lora_rank", "8", "--output_dir", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err.count("error") == 1
    assert corsa("--help") == 0
    assert "NAME is fsdp2, multi_gpu, single_gpu, zero1, zero2, zero3, or a file" in capsys.readouterr().out
