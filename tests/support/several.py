"""Trainings by one process and by several, as a launcher starts them, with gloo in the place of NCCL.

``python -m torch.distributed.run --nproc_per_node=2 -m tests.support.several FOLDER`` trains every case of
``FOLDER/cases.json`` on the model and the facts beside it, and writes ``FOLDER/NAME.PROCESSES`` for each; a case of
``arguments`` is one of `corsa train`.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.support.forks import forks

Run = subprocess.CompletedProcess[str]

os.environ.setdefault("TQDM_DISABLE", "1")

FACTS = [(f"The capital of {land} is", f" {new}", f" {old}") for land, new, old in (
    ("Avaria", "Oslo", "Rome"), ("Belmark", "Nordlys city", "Paris"), ("Corvia", "Madrid", "New York City"),
    ("Dunmere", "Rome now", "St. Louis"), ("Elland", "Paris", "Oslo town"), ("Farholt", "St. Louis", "Madrid"),
    ("Garland", "Buenos Aires", "Rome"), ("Hollin", "Kuala Lumpur", "Oslo"), ("Ister", "Rome", "Oslo"),
)]  # fmt: skip


def trained(folder: Path, case: dict[str, Any], processes: int) -> dict[str, Any]:
    """Train one case; what came of it: the adapter's parameters and the logs.

    ``rows`` are the facts that are taken, ``accumulation`` the micro-batches of a step on each of ``of`` processes,
    ``dies`` the step after which the second of them is killed, ``dies_within`` the one in whose first forward pass it
    is, ``empty`` the process whose model has no weights, and ``storage`` the precision that a 4-bit base is stored as.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from corsa_plugins.model.limits import full_shape
    from trl_ext import CoRSAConfig, CoRSATrainer

    case = dict(case)
    of, name = case.pop("of", 2), case.pop("name")
    rows, evaluated = case.pop("rows"), case.pop("evaluated", 0)
    resume, empty, storage = (case.pop(name, None) for name in ("resume", "empty", "storage"))
    dies, dies_within = case.pop("dies", None), case.pop("dies_within", None)
    facts = [dict(zip(("prompt", "chosen", "rejected"), fact, strict=True)) for fact in FACTS]
    settings = {
        "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False,
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "ddp_backend": "gloo" if processes > 1 else None, "lr_scheduler_type": "constant",
    } | case  # fmt: skip
    settings["gradient_accumulation_steps"] = settings.pop("accumulation", 1) * of // processes
    config = CoRSAConfig(str(folder / f"{name}.{processes}.out"), **settings)  # processes know each other from here on
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", **(four_bits(storage) if storage else {}))
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes packs weights anew for some CPUs
            module.support_avx512bf16_for_cpu = False
    trainer = CoRSATrainer(
        model.to("meta") if empty and config.process_index == empty else model,
        args=config,
        train_dataset=Dataset.from_list(facts[:rows]),
        eval_dataset=Dataset.from_list(facts[-evaluated:]) if evaluated else None,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )

    class Death(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == dies and args.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == dies_within and args.process_index == 1:
                *_, last = (module for name, module in model.named_modules() if name.endswith("mlp"))
                last.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))

    trainer.add_callback(Death())
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / f"{name}.{processes}.out" / "adapter"))
    parameters = dict(trainer.model.named_parameters())
    return {
        "here": sum(getattr(p, "ds_tensor", getattr(p, "_local_tensor", p)).numel() for p in parameters.values()),
        "all": sum(full_shape(p).numel() for p in parameters.values()),
        "log": trainer.state.log_history,
        "step": trainer.state.global_step,
        "weights": {n: p.detach().flatten().tolist() for n, p in trainer.model.named_parameters() if "lora_" in n},
    }


def four_bits(storage: str) -> dict[str, Any]:
    """Settings of ``from_pretrained``."""
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=storage),
        "dtype": "float32",
    }


def together(module: str, *arguments: str, processes: int = 2, timeout: float = 400, **variables: str) -> Run:
    """Several processes of a module with what torchrun puts in their environment, and these variables; when one of them
    fails, the others are ended."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        shared = variables | {
            "OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        }  # fmt: skip
        free.close()
        outputs = [Path(folder) / str(rank) for rank in range(processes)]
        started = [
            forks().Process(
                target=_one_of_several,
                args=(module, arguments, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, os.getcwd(), output),
            )
            for rank, output in enumerate(outputs)
        ]
        for process in started:
            process.start()
        end, running = time.monotonic() + timeout, list(started)
        while running and time.monotonic() < end and not any(process.exitcode for process in started):
            wait([process.sentinel for process in running], timeout=end - time.monotonic())
            running = [process for process in running if process.is_alive()]
        for process in running:
            process.kill()
        for process in started:
            process.join()
        code = next((process.exitcode for process in started if process.exitcode), 0)
        out, err = ("".join(path.with_suffix(kind).read_text() for path in outputs) for kind in (".out", ".err"))
        return subprocess.CompletedProcess([module, *arguments], code, out, err)


def _one_of_several(
    module: str, arguments: Sequence[str], variables: dict[str, str], folder: str, output: Path
) -> None:
    import torch

    for number, kind in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(kind), os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def of_configuration(path: Path) -> dict[str, str]:
    """What ``accelerate launch`` reads of a configuration and puts in the environment of its processes, for
    :func:`together`; in no other precision than the training's."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = [
        "--config_file",
        str(path),
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        "-m",
        "tests.support.several",
    ]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if os.environ.get(name) != value}


def launch(module: str, *arguments: str, processes: int = 2, timeout: float = 400, **variables: str) -> Run:
    """Several processes of a module, by torchrun itself, with these variables."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )


def main(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would compile a minute for what gloo does
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for case in json.loads((folder / "cases.json").read_text()):
        if "arguments" in case:  # of `corsa train`
            from trl_ext.train import main as train

            train(case["arguments"])
            continue
        result = trained(folder, case, processes)
        if int(os.environ.get("RANK", "0")) == 0:
            (folder / f"{case['name']}.{processes}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
