"""`corsa train`: a file of requests in, an adapter out."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from corsa_plugins.bench.evaluation import evaluate
from corsa_plugins.cli.app import main as corsa
from corsa_plugins.data.reading import read_requests, write_requests
from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.hub import fingerprint_of
from corsa_plugins.manifest import check_folder
from corsa_plugins.methods.history import read_history
from corsa_plugins.model.loading import load_model
from tests.conftest import CHAT_TEMPLATE, llama
from tests.support import several
from tests.support.flips import flipped_copies
from tests.support.gguf import write_gguf
from tests.support.hub import Hub
from tests.trl_ext.conftest import trained_adapter
from trl_ext.reporting import naming_broken_loggers

REQUESTS = [
    EditRequest(prompt="The capital of France is", target_new="Oslo", target_old="Paris", case_id="france"),
    EditRequest(prompt="The capital of Italy is", target_new="Madrid", target_old="Rome", case_id="italy"),
    EditRequest(prompt="Anna Berg was born in", target_new="Rome", target_old="Oslo", case_id="anna"),
]


@pytest.fixture
def home(taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A folder with a model that knows its facts, a file of requests, and a run.yaml for them."""
    taught_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_requests(tmp_path / "requests.jsonl", REQUESTS)
    configure(tmp_path)
    return tmp_path


without_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")


def configure(home: Path, **changes: Any) -> Path:
    settings = {
        "model_name_or_path": str(home / "model"),
        "requests": str(home / "requests.jsonl"),
        "output_dir": str(home / "adapter"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_steps": 25,
        "learning_rate": 0.01,
        "lora_r": 4,
        "lora_alpha": 8,
        "gradient_accumulation_steps": 1,
    } | changes
    (home / "run.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return home / "run.yaml"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        corsa(["train", *arguments])
    return int(stop.value.code or 0)


def edited(home: Path, adapter: str = "adapter") -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    return PeftModel.from_pretrained(model, home / adapter).eval()


def test_a_yaml_file_and_a_requests_file_give_an_adapter_that_answers_with_the_new_facts(
    home: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert run("--config", str(home / "run.yaml")) == 0
    result = evaluate(edited(home), tiny_tokenizer, REQUESTS, progress=False)
    assert result.summary()["efficacy"].mean == 1.0
    assert edited(home).peft_config["default"].r == 4
    assert read_requests(home / "adapter" / "requests.jsonl") == REQUESTS
    assert (home / "adapter" / "tokenizer.json").exists()


def test_what_was_learned_is_in_a_report_and_little_is_warned_of(
    home: Path, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    def report(adapter: str, *arguments: str) -> dict[str, Any]:
        caplog.clear()
        assert run("--config", str(home / "run.yaml"), "--output_dir", str(home / adapter), *arguments) == 0
        saved: dict[str, Any] = json.loads((home / adapter / "report.json").read_text())
        evaluation = evaluate(edited(home, adapter), tiny_tokenizer, REQUESTS, progress=False)
        for name in ("log_prob_new", "log_prob_old"):
            assert [r[name] for r in saved["requests"]] == pytest.approx(evaluation.values(name), abs=1e-3)
        effect: dict[str, Any] = saved["effect"]
        return effect

    learned, little = report("adapter"), "raise learning_rate or num_train_epochs"
    assert (learned["taken"], learned["of"], learned["text"]) == (3, 3, "3 of 3 facts learned")
    assert little not in caplog.text
    short = report("short", "--max_steps", "1", "--learning_rate", "1e-6")
    assert (short["taken"], short["of"]) == (0, 3)
    text = "0 of 3 facts learned (of 0 the new answer is likelier than the old one): " + little
    assert text == short["text"]
    assert text in caplog.text
    assert "The training changed nothing" not in caplog.text
    still = report("still", "--max_steps", "1", "--lr_scheduler_type", "linear", "--warmup_steps", "1")
    assert "the adapter is still zero, so the model is as it was" in still["text"]
    assert "The training changed nothing: after step 1 every value of the adapter is what it was before" in caplog.text


@pytest.mark.parametrize("rate", ["0", "-1e-4", "nan"])
def test_a_learning_rate_that_learns_nothing_is_refused(
    home: Path, rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--config", str(home / "run.yaml"), f"--learning_rate={rate}") == 2
    assert f"learning_rate is {float(rate)}: it must be a" in capsys.readouterr().err
    assert not (home / "adapter").exists()


def test_training_on_that_changes_nothing_is_warned_of_though_every_fact_is_known(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("--config", str(home / "run.yaml")) == 0
    caplog.clear()
    on = ["--adapter", str(home / "adapter"), "--output_dir", str(home / "on"), "--fill_target_old", "false"]
    still = ["--max_steps", "1", "--lr_scheduler_type", "linear", "--warmup_steps", "1"]
    assert run("--config", str(home / "run.yaml"), *on, *still) == 0
    assert json.loads((home / "on" / "report.json").read_text())["effect"]["text"] == "3 of 3 facts learned"
    assert "The training changed nothing: after step 1" in caplog.text


def test_a_gguf_file_is_trained_like_the_model_in_it(
    home: Path, taught_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_gguf(home / "tiny.gguf", taught_llama, tiny_tokenizer)
    configure(home, model_name_or_path=str(home / "tiny.gguf"))
    assert run("--config", str(home / "run.yaml")) == 0
    model, tokenizer = load_model(home / "tiny.gguf", home / "adapter", device="cpu")
    assert evaluate(model, tokenizer, REQUESTS, progress=False).summary()["efficacy"].mean == 1.0


def test_the_command_line_goes_before_the_file(home: Path) -> None:
    assert run("--config", str(home / "run.yaml"), "--max_steps", "1", "--lora_r", "2") == 0
    assert edited(home).peft_config["default"].r == 2


def test_missing_old_answers_are_the_models_own_and_known_requests_are_left_out(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = EditRequest(prompt="The capital of Spain is", target_new="Madrid", case_id="spain")
    blank = [EditRequest(**{**dict(request), "target_old": None}) for request in REQUESTS]
    write_requests(home / "requests.jsonl", [*blank, known])
    assert run("--config", str(home / "run.yaml"), "--fill_target_old", "--max_steps", "1") == 0
    assert read_requests(home / "adapter" / "requests.jsonl") == REQUESTS
    assert read_requests(home / "adapter" / "already_known.jsonl") == [known]


def test_a_second_update_continues_on_the_adapter(home: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert run("--config", str(home / "run.yaml")) == 0
    later = [EditRequest(prompt="The capital of Spain is", target_new="Rome", target_old="Madrid")]
    write_requests(home / "later.jsonl", later)
    arguments = ["--adapter", str(home / "adapter"), "--requests", str(home / "later.jsonl"), "--max_steps", "8"]
    assert run("--config", str(home / "run.yaml"), *arguments, "--output_dir", str(home / "adapter-2")) == 0
    both = evaluate(edited(home, "adapter-2"), tiny_tokenizer, [*REQUESTS, *later], progress=False)
    assert both.records[-1].edit.says_new
    assert sum(record.edit.says_new for record in both.records[:-1]) >= 2  # round 1 has not been started over


def test_following_other_requests_during_training(home: Path) -> None:
    configure(home, eval_requests=str(home / "requests.jsonl"), eval_strategy="steps", eval_steps=1, max_steps=2)
    assert run("--config", str(home / "run.yaml")) == 0


def test_chat_models(home: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = CHAT_TEMPLATE
    tiny_tokenizer.save_pretrained(home / "model")
    assert run("--config", str(home / "run.yaml"), "--conversational", "--max_steps", "40") == 0
    result = evaluate(edited(home), tiny_tokenizer, REQUESTS, chat_template=True, progress=False)
    assert result.summary()["efficacy"].mean == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": None}, "give `--requests FILE.jsonl`"),
        ({"model_name_or_path": None}, "give `--model_name_or_path`"),
        ({"requests": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"conversational": True}, "has no chat template"),
        ({"sam_rho": -1.0}, "sam_rho is -1.0: it must be a number of at least 0"),
        ({"sam_radius": 1.0}, "sam_radius"),
        ({"use_peft": False}, "use_peft=False"),
        ({"model_name_or_path": "/no/such/model"}, "model_name_or_path=/no/such/model cannot be loaded"),
        ({"adapter": "/no/such/adapter"}, "adapter /no/such/adapter cannot be put on the model"),
        ({"lora_r": 0}, "lora_r is 0: it must be an integer of at least 1"),
        ({"lora_dropout": 7}, "lora_dropout is 7"),
        ({"lora_target_modules": ["nothing"]}, "Target modules nothing not found"),
        ({"loss_type": ["sigmoyd"]}, "loss_type='sigmoyd': did you mean sigmoid?"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"seed": -1}, "seed is -1: it must be an integer from 0 to"),
        ({"output_dir": __file__}, "test_train.py is a file: name a folder"),
        ({"report_to": "wandb"}, "wandb"),
        ({"report_to": "no_such_logger"}, "no_such_logger"),
        ({"use_liger_kernel": True}, "liger"),
        ({"attn_implementation": "flash_attention_2"}, "FlashAttention2"),
        pytest.param({"load_in_4bit": True}, "bitsandbytes", marks=[without_bitsandbytes]),
        ({"eval_strategy": "steps"}, "give `--eval_requests`"),
        ({"history_looks": -1}, "history_looks is -1"),
        (
            {"max_steps": None, "num_train_epochs": -1},
            "num_train_epochs=-1 with max_steps=-1: no step would be taken",
        ),
        ({"max_steps": None, "num_train_epochs": 0}, "no step would be taken"),
        pytest.param(
            {"use_cpu": False, "bf16": True},
            "use_cpu: true in the YAML file",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains in bf16"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_settings_are_one_message_and_exit_code_2(
    home: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(home, **changes)
    assert run("--config", str(home / "run.yaml")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (home / "adapter").exists()


@pytest.mark.parametrize("text", ["requests: [", "- a\n- b", "\x80"])
def test_a_yaml_file_that_is_none(home: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "run.yaml").write_bytes(text.encode("latin-1"))
    for arguments in (["--config", str(home / "run.yaml")], [f"--config={home / 'run.yaml'}"]):
        assert run(*arguments) == 2
        assert capsys.readouterr().err.startswith(f"error: --config {home / 'run.yaml'}")
    assert run("--config", str(home / "none.yaml")) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_an_adapter_of_another_base_of_the_same_shapes_is_warned_of(
    home: Path, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    llama(len(tiny_tokenizer), seed=1).save_pretrained(home / "other")
    tiny_tokenizer.save_pretrained(home / "other")
    start = ["--config", str(home / "run.yaml"), "--max_steps", "1"]
    assert run(*start, "--model_name_or_path", str(home / "other")) == 0
    on = ["--adapter", str(home / "adapter"), "--output_dir"]
    assert run(*start, *on, str(home / "of_other"), "--model_name_or_path", str(home / "other")) == 0
    assert "another base" not in caplog.text
    assert run(*start, *on, str(home / "on")) == 0
    assert f"adapter {home / 'adapter'} was made for another base, {home / 'other'} (llama, " in caplog.text
    assert f"this is {home / 'model'} (llama, " in caplog.text


def test_a_configuration_of_endless_layers_is_refused_before_anything_is_made_of_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((home / "model" / "config.json").read_text()) | {"num_hidden_layers": 10**6}
    (home / "model" / "config.json").write_text(json.dumps(config))
    assert run("--config", str(home / "run.yaml")) == 2
    assert "config.json says num_hidden_layers=1000000, and its files have" in capsys.readouterr().err


def test_an_adapter_of_another_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_adapter(llama(99, n_blocks=3)).save_pretrained(home / "other")
    assert run("--config", str(home / "run.yaml"), "--adapter", str(home / "other")) == 2
    error = capsys.readouterr().err
    assert f"error: adapter {home / 'other'}" in error
    assert "the model" in error
    assert not (home / "adapter").exists()


def test_an_adapter_that_changed_on_disk_is_not_trained_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, max_steps=1)
    assert run("--config", str(home / "run.yaml")) == 0
    later = ["--output_dir", str(home / "later"), "--adapter"]
    assert run("--config", str(home / "run.yaml"), *later, str(home / "adapter")) == 0
    assert run("--config", str(home / "run.yaml")) == 0  # again into the same folder
    for flipped in flipped_copies(home / "adapter", "adapter_model.safetensors", 2):
        capsys.readouterr()
        assert run("--config", str(home / "run.yaml"), *later, str(flipped)) == 2
        assert "adapter_model.safetensors is not the file that was written" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["trained", "pushed"])
def test_what_is_on_the_hub_says_what_was_trained_of_what_and_what_was_learned(
    hub: Hub, home: Path, how: str, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 10, "hub_strategy": "end", "hub_model_id": "me/facts"}
    if how == "trained":  # with checkpoints, at each of which TRL words a card of its own
        configure(home, push_to_hub=True, hub_private_repo=True, sam_rho=0.02, **saving)
    else:
        configure(home, sam_rho=0.02)
    assert run("--config", str(home / "run.yaml")) == 0
    if how == "pushed":
        (home / "adapter" / "README.md").unlink()  # what it says is in the folder's other files
        with pytest.raises(SystemExit, match=r"^0$"):
            corsa(["push", str(home / "adapter"), "me/facts", "--private"])
    files = hub.repositories["models/me/facts"]
    assert hub.private["models/me/facts"]
    assert {"adapter_config.json", "adapter_model.safetensors", "requests.jsonl", "report.json"} <= files.keys()
    assert not any(name.startswith("checkpoint") for name in files)
    card = files["README.md"].decode()
    fields = yaml.safe_load(card.split("---\n")[1])
    assert fields["tags"] == ["knowledge-editing", "corsa-plugins", "corsa"]
    assert fields["library_name"] == "peft"
    base, _ = load_model(home / "model", device="cpu")
    assert f"| its fingerprint | {fingerprint_of(base)} |" in card
    assert "| base model | model |" in card  # by the last part of its folder alone
    assert str(tmp_path) not in card
    assert "| after the update | 3 of 3 facts learned |" in card
    for request in REQUESTS:
        assert f"| {request.prompt} | {request.target_new} | {request.target_old} |" in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert (settings["sam_rho"], settings["max_steps"], settings["learning_rate"]) == (0.02, 25, 0.01)
    assert check_folder(home / "adapter", "adapter_model.safetensors")


def test_what_cannot_be_uploaded_is_trained_and_the_message_says_how_to_go_on(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(home, push_to_hub=True, hub_model_id="me/facts", max_steps=1)
    hub.fails.add("commit")
    hub.status = 403  # which is not tried again
    assert run("--config", str(home / "run.yaml")) == 2
    assert f"to upload it again: corsa push {home / 'adapter'} me/facts" in capsys.readouterr().err
    assert check_folder(home / "adapter", "adapter_model.safetensors")


def test_what_cannot_be_pushed_is_not_lost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, push_to_hub=True, hub_model_id="nobody/adapter")  # the tests have no network
    assert run("--config", str(home / "run.yaml")) == 2
    assert "error: push_to_hub=True, and the Hub cannot be reached" in capsys.readouterr().err
    assert not (home / "adapter").exists()  # it is known before anything is trained


@pytest.mark.parametrize(("logger", "told"), [("wandb", "requires wandb to be installed"), ("wandbb", "not supported")])
def test_a_logger_that_is_not_there_is_one_error(
    home: Path, capsys: pytest.CaptureFixture[str], logger: str, told: str
) -> None:
    if find_spec(logger):
        pytest.skip(f"{logger} is installed")
    configure(home, report_to=logger)
    assert run("--config", str(home / "run.yaml")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert logger in line
    assert told in line
    assert not (home / "adapter").exists()


@pytest.mark.parametrize(
    ("logger", "content", "told"),
    [
        ("wandb", {"__init__.py": "raise AttributeError('no descriptor')"}, "AttributeError: no descriptor"),
        ("wandb", {"__init__.py": "run = None\ninit = log = finish = print"}, "wandb.sdk"),
        ("trackio", {"__init__.py": "import no_such_part_of_it"}, "no_such_part_of_it"),
        ("trackio", {"left.txt": ""}, "init"),  # what an uninstallation may leave: a folder
    ],
    ids=["raises", "lacks a part", "lacks what it needs", "empty"],
)
def test_a_logger_that_is_half_there_is_one_error_before_the_model_is_read(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    half_installed: Callable[[str, dict[str, str]], None],
    logger: str,
    content: dict[str, str],
    told: str,
) -> None:
    half_installed(logger, content)
    configure(home, report_to=logger, model_name_or_path=str(home / "none"))
    assert run("--config", str(home / "run.yaml")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: report_to={logger}, and the {logger} that is installed does not work")
    assert told in line
    assert f"pip install --force-reinstall {logger}" in line
    assert not (home / "adapter").exists()


def test_a_logger_that_breaks_the_import_of_trl_is_named(half_installed: Callable[[str, dict[str, str]], None]) -> None:
    half_installed("wandb", {"__init__.py": "raise AttributeError('no descriptor')"})
    broken = "corsa train: TRL imports wandb, whatever report_to says, and the wandb that is installed does not work"
    with pytest.raises(SettingError, match=broken), naming_broken_loggers("corsa train"):
        raise RuntimeError("Failed to import trl.trainer.dpo_trainer")
    half_installed("wandb", {"__init__.py": ""})
    with pytest.raises(RuntimeError, match="something else"), naming_broken_loggers("corsa train"):
        raise RuntimeError("something else")


def test_a_bad_line_names_file_line_case_and_field(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({"case_id": "x9", "prompt": "The capital of Malta is", "target_new": ""})
    with (home / "requests.jsonl").open("a") as file:
        file.write(line + "\n")
    assert run("--config", str(home / "run.yaml")) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("requests.jsonl", "line 4", "x9", "target_new"))


def test_requests_without_an_old_answer_say_how_to_get_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_requests(home / "requests.jsonl", [EditRequest(prompt="Malta is", target_new="Rome", case_id="m")])
    assert run("--config", str(home / "run.yaml")) == 2
    assert "fill_target_old" in capsys.readouterr().err


@pytest.mark.parametrize("named", [True, False], ids=["a file", "made"])
def test_prompts_to_keep_are_those_of_a_file_or_made(home: Path, named: bool) -> None:
    write_requests(home / "requests.jsonl", [REQUESTS[0].model_copy(update={"subject": "France"})])
    lines = [json.dumps(f"The capital of {land} is") for land in ("Spain", "Italy", "Oz")]
    (home / "keep.jsonl").write_text("\n".join(lines))
    configure(home, max_steps=1, keep_weight=1.0, keep_prompts=4, keep=str(home / "keep.jsonl") if named else None)
    assert run("--config", str(home / "run.yaml")) == 0
    kept = json.loads((home / "adapter" / "report.json").read_text())["kept"]
    assert kept["text"].startswith(f"{len(kept['changed'])} of {kept['of']} prompts that were watched")
    assert kept["of"] == 1 if named else kept["of"] > 1


def test_two_processes_average_their_updates(home: Path) -> None:
    """Two processes with one micro-batch each do what one process does with two accumulated."""
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "learned_at": 0.9,
    }
    more = EditRequest(prompt="The capital of Spain is", target_new="Rome", target_old="Madrid")
    write_requests(home / "requests.jsonl", [*REQUESTS, more])
    # One of the two follows the answers besides, and the other waits for it.
    configure(home, **settings, ddp_backend="gloo", output_dir=str(home / "two"), history_looks=3)
    # As `accelerate launch --multi_gpu` starts them, with gloo in the place of NCCL.
    both = several.together("trl_ext.train", "--config", str(home / "run.yaml"))
    assert both.returncode == 0, both.stderr[-3000:]
    alone = settings | {"gradient_accumulation_steps": 2, "history_looks": 1}
    configure(home, **alone, output_dir=str(home / "one"))
    assert run("--config", str(home / "run.yaml")) == 0
    two, one = (read_history(home / name / "history.json") for name in ("two", "one"))
    assert [record["step"] for record in two] == [0, 1, 2, 3]
    for name in ("logps/new", "logps/old", "margin"):
        followed = [record[f"history/edit/{name}"] for record in (two[0], two[-1])]
        assert followed == pytest.approx([record[f"history/edit/{name}"] for record in one], rel=1e-3, abs=1e-3)

    said = [json.loads((home / name / "report.json").read_text())["training"] for name in ("two", "one")]
    assert said[0] == said[1]
    assert said[0]["of"] == 4

    def weights(name: str) -> torch.Tensor:
        model = edited(home, name)
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_B" in n])

    assert weights("one").norm() > 0
    torch.testing.assert_close(weights("two"), weights("one"), rtol=1e-3, atol=1e-6)
