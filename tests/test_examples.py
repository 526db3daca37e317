"""The examples run, and the files they come with are what they say."""

from __future__ import annotations

from pathlib import Path

import yaml
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.data.contradictions import check_requests
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from tests.support.scripts import run_script
from trl_ext.arguments import make_parser

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_facts_are_a_dozen_requests_with_old_answers_paraphrases_and_probes() -> None:
    requests = read_requests(EXAMPLES / "facts.jsonl")
    assert len(requests) == 12
    assert not check_requests(requests).contradictions
    assert all(r.target_old and r.subject and r.paraphrases and r.neighborhood for r in requests)


def test_the_llama_configuration_is_understood_and_is_the_papers() -> None:
    config = EXAMPLES / "corsa_llama3.1_8b.yaml"
    # What a machine without a GPU cannot have is left out; every other line goes through the parser.
    settings = yaml.safe_load(config.read_text())
    arguments = ["--config", str(config), "--use_cpu", "true", "--bf16", "false"]
    requests, training, model = make_parser().parse_args_and_config(arguments)
    assert (EXAMPLES.parent / requests.requests).exists()
    assert model.model_name_or_path == settings["model_name_or_path"]
    assert (model.lora_r, model.lora_alpha, training.learning_rate) == (32, 64, 2e-4)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert (training.dpo_weight, training.beta, training.sam_rho, training.pcgrad) == (1.0, 0.1, 0.05, True)


def test_the_configuration_for_code_is_understood_and_is_the_papers() -> None:
    arguments = ["--config", str(EXAMPLES / "corsa_code.yaml"), "--use_cpu", "true", "--bf16", "false"]
    requests, training, model = make_parser().parse_args_and_config(arguments)
    assert (model.lora_r, model.lora_alpha, training.learning_rate) == (128, 256, 2e-5)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert requests.fill_target_old
    assert requests.whole_answers


def test_the_twenty_lines_of_python_edit_a_model(
    taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The file has requests with and without an outdated answer, and one that the model already answers as wanted."""
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    requests = [
        EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris"),
        EditRequest(prompt="The capital of Italy is", target_new="Madrid"),
        EditRequest(prompt="The capital of Spain is", target_new="Madrid"),
    ]
    write_requests(tmp_path / "facts.jsonl", requests)
    script = EXAMPLES / "train_corsa.py"
    lines = [line for line in script.read_text().split('"""')[2].splitlines() if line and not line.startswith("#")]
    assert sum(not line.startswith(("import", "from")) for line in lines) <= 20
    result = run_script(
        script,
        tmp_path / "model",
        tmp_path / "facts.jsonl",
        tmp_path / "out",
        folder=tmp_path,
        ACCELERATE_USE_CPU="true",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "efficacy" in result.stdout.lower()
    PeftModel.from_pretrained(taught_llama, tmp_path / "out")


def test_the_editing_example_edits_and_takes_back(tmp_path: Path) -> None:
    result = run_script(EXAMPLES / "edit_testbed.py", tmp_path / "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "requests edited" in result.stdout
    assert "['second']" in result.stdout
    assert (tmp_path / "out" / "state" / "state.json").exists()


def test_the_example_of_several_adapters_trains_and_routes(tmp_path: Path) -> None:
    result = run_script(EXAMPLES / "several_adapters.py", tmp_path / "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "20 requests in 3 parts" in result.stdout
    assert "Routing accuracy" in result.stdout
    for part in ("part-1", "part-2", "part-3"):
        assert (tmp_path / "out" / part / "adapter_config.json").exists()
        assert read_requests(tmp_path / "out" / part / "requests.jsonl")


def test_the_example_of_a_hot_swap_answers_by_the_adapter(tmp_path: Path) -> None:
    result = run_script(EXAMPLES / "hot_swap.py", tmp_path / "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    for name, other in (("monday", "tuesday"), ("tuesday", "monday")):
        assert f"{name} answers 3 of 3 edits of {name}" in result.stdout
        assert f"{name} answers 0 of 3 edits of {other}" in result.stdout
    assert "switching: " in result.stdout
