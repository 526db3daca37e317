"""What a training reports to (``report_to``), seen to be there before anything is loaded.

A package whose installation is broken is found by transformers all the same, and what it lacks comes up in the first
step, or, of those that TRL imports itself, as soon as TRL is.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from corsa_plugins.errors import SettingError

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["check_reporting", "naming_broken_loggers"]

_USED: Mapping[str, tuple[str, ...]] = {
    "wandb": ("init", "log", "finish", "sdk.lib.config_util.ConfigError"),
    "trackio": ("init", "log", "finish"),
    "swanlab": ("init", "log", "get_run"),
    "clearml": ("Task.init", "Task.running_locally"),
}
"""What transformers asks of a package once a training has begun; what others lack comes up when they are imported."""

_IMPORTED = ("wandb", "weave", "comet_ml", "mlflow", "trackio")
"""What TRL imports where it is found, whatever ``report_to`` says."""


def check_reporting(args: TrainingArguments) -> None:
    """That everything in ``report_to`` is known, installed, and whole.

    Raises:
        SettingError: naming the package, and ``report_to``.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    for name in args.report_to or ():
        try:
            for callback in get_reporting_integration_callbacks([name]):
                if isinstance(callback, type):
                    callback()
            for attribute in _USED.get(name, ()):
                _look_up(name, attribute)
        # Of whatever kind: these are imports of packages that may be broken in any way.
        except Exception as error:
            if not name.isidentifier() or find_spec(name) is None:
                raise SettingError(f"report_to={name}: {error}") from error  # transformers says what it knows or needs
            raise SettingError(_broken(f"report_to={name}", name, error, "leave it out of report_to")) from error


@contextmanager
def naming_broken_loggers(what: str) -> Iterator[None]:
    """Within the block, in which TRL is imported for ``what``, an error that a broken package makes is about it.

    Raises:
        SettingError: naming the package.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, SettingError):
            for name in _IMPORTED:
                _see(what, name)
        raise


def _see(what: str, name: str) -> None:
    try:
        if find_spec(name) is not None:
            importlib.import_module(name)
    except Exception as error:
        about = f"{what}: TRL imports {name}, whatever report_to says"
        raise SettingError(_broken(about, name, error, f"take it out, pip uninstall {name}")) from error


def _look_up(name: str, attribute: str) -> None:
    found, path = importlib.import_module(name), name
    for part in attribute.split("."):
        path += f".{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            if not hasattr(found, "__path__"):
                raise
            found = importlib.import_module(path)


def _broken(about: str, name: str, error: Exception, otherwise: str) -> str:
    return (
        f"{about}, and the {name} that is installed does not work ({type(error).__name__}: {error}): install it anew, "
        f"pip install --force-reinstall {name}, or {otherwise}."
    )
