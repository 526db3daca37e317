"""``corsa train --accelerate_config NAME``: the training in the processes of ``accelerate launch``.

The configurations lie in ``accelerate_configs/``, and are chosen by name as in TRL's own command line. What says where
and how many processes there are goes to ``accelerate launch``, all else to the training.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from corsa_plugins.errors import SettingError
from corsa_plugins.paths import user_path
from corsa_plugins.settings import did_you_mean, read_mapping

__all__ = [
    "CONFIGS",
    "LAUNCH_OPTIONS",
    "configuration",
    "configuration_names",
    "in_processes",
    "launch_command",
    "wants_launch",
]

CONFIGS = Path(__file__).parent / "accelerate_configs"
"""The folder of the configurations, for ``accelerate launch --config_file``."""

LAUNCH_OPTIONS = (
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "gpu_ids",
    "mixed_precision",
)
"""Options of ``accelerate launch`` that may stand beside ``--accelerate_config``, over what the configuration says."""

_NAME = "accelerate_config"


def wants_launch(argv: Sequence[str]) -> bool:
    """Whether a command line of `corsa train` asks for a configuration."""
    return any(argument.partition("=")[0].replace("-", "_") == f"__{_NAME}" for argument in argv)


def configuration_names() -> list[str]:
    """By which configurations are chosen."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def configuration(name: str) -> Path:
    """The file of a configuration: one of ours by its name, or any by its path.

    Raises:
        SettingError: There is none, it holds no settings, or it is launched by DeepSpeed, which is not installed.
    """
    path = CONFIGS / f"{name}.yaml"
    if name not in configuration_names():
        path = user_path(name)
        if not path.is_file():
            known = configuration_names()
            raise SettingError(
                f"--{_NAME} {name}: neither a configuration nor a file: {did_you_mean(name, known, 'there are')}"
            )
    settings = read_mapping(path, f"--{_NAME} {name}")
    if settings.get("distributed_type") == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise SettingError(
            f"--{_NAME} {name}: accelerate launches it with DeepSpeed, which is not installed: pip install deepspeed, "
            "or use fsdp2 or multi_gpu."
        )
    return path


def launch_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command that trains as asked, and the arguments of the training alone.

    Args:
        argv: Of `corsa train`, with ``--accelerate_config``.

    Raises:
        SettingError: There is no such configuration, or an option without its value.
    """
    launched, rest = _parted(argv)
    config = configuration(launched.pop(_NAME))
    options = [part for name, value in launched.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options]
    return [*command, "-m", "trl_ext.train", *rest], rest


def in_processes(command: Sequence[str]) -> int:
    """Run a command and wait for it, through a Ctrl-C too, which its processes get themselves; its exit code."""
    process = subprocess.Popen(command)
    interrupted = False
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            interrupted = True
            continue
        return 130 if interrupted else code


def _parted(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What is for the launcher, by name, and the rest."""
    launched: dict[str, str] = {}
    rest: list[str] = []
    left = iter(argv)
    for argument in left:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in (_NAME, *LAUNCH_OPTIONS):
            rest.append(argument)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise SettingError(f"--{name}: give a value")
        launched[name] = value
    return launched, rest
