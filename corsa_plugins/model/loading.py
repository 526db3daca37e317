"""A model and its tokenizer from a name or a folder, and adapters to put on it."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from corsa_plugins.errors import LoadingError, SettingError, require
from corsa_plugins.model.bases import warn_of_another_base
from corsa_plugins.model.gguf import find_gguf, load_gguf_model, load_gguf_tokenizer
from corsa_plugins.model.placement import Placement, Where, give_memory, is_offloaded, without_device_map
from corsa_plugins.model.precision import computes_in_bfloat16
from corsa_plugins.model.quantised import QUANTISED, has_quantised_maps, keep_layout, quantisation_config
from corsa_plugins.model.stored import auto_class, check_patterns, check_stored, reading, refuse_missing
from corsa_plugins.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DTYPES", "PRECISIONS", "LoadingError", "load_model", "load_whole", "put_adapters"]

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DTYPES = (*PRECISIONS, *QUANTISED)


def load_model(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    *,
    device: Where = None,
    dtype: str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model for inference, with its tokenizer.

    Args:
        model: A folder, a name on the Hugging Face Hub, or a GGUF file: itself, or the folder that it is alone in.
        adapter: A PEFT adapter to put on it: a folder, or a name on the Hub. Needs PEFT.
        device: For instance ``"cpu"`` or ``"cuda:1"``; by default a GPU if there is one. Or a :class:`Placement`: parts
            on several devices, some of them offloaded to main memory or to disk.
        dtype: ``"auto"`` (as saved, but float32 for a float16 model on a CPU), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``. A GGUF file is unpacked to float32 where nothing else is said. Or linear maps quantised while
            they are read (:data:`~corsa_plugins.model.quantised.QUANTISED`) and the rest as for ``"auto"``; a folder
            of a quantised model is loaded as it is by ``"auto"``.

    Returns:
        The model, in evaluation mode (a ``PeftModel`` if there is an adapter), and the tokenizer.

    Raises:
        LoadingError: There is no such model or adapter; or the file is not whole, or of an unknown architecture.
        SettingError: No such device or precision; or a GGUF file or an offloaded model is to be quantised.
        MissingExtraError: An adapter is given and PEFT is not installed, or a GGUF file and gguf is not, or a placement
            and accelerate is not, or what quantises is not.
    """
    if adapter is not None:
        require("peft", "trl", what="an adapter")
    target = None if isinstance(device, Placement) else _device(device)
    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    gguf = find_gguf(model)
    for path, what in ((None if gguf else model, "model"), (adapter, "adapter")):
        if path is not None and _looks_like_a_folder(path) and not user_path(path).is_dir():
            raise LoadingError(f"{what} {os.fspath(path)}: no such folder (looked in {Path.cwd()})")
    loaded: Any
    if gguf and dtype in QUANTISED:
        raise SettingError(
            f"model {gguf}: dtype {dtype} quantises a folder while it is read, and a GGUF file is unpacked; write "
            f"it out first, as in corsa atlas --model {gguf} --output FOLDER, and name that folder"
        )
    if isinstance(device, Placement):
        tokenizer, loaded = _load_in_parts(model, gguf, dtype, device)
    elif dtype in QUANTISED or (not gguf and _stored_quantised(model)):
        tokenizer, loaded = _load(model, dtype, device_map={"": target})
        target = None  # there already: what is quantised is not moved, nor turned into another precision
    elif gguf:
        tokenizer, loaded = load_gguf_tokenizer(gguf), load_gguf_model(gguf, dtype)
    else:
        tokenizer, loaded = _load(model, dtype)
    if adapter is not None:
        loaded = put_adapters(loaded, {"default": adapter}, called=os.fspath(model))
    if target is None:
        return loaded.eval(), tokenizer
    if dtype == "auto" and target.type == "cpu" and loaded.dtype == torch.float16:
        loaded = loaded.float()  # CPUs have no arithmetic for float16: it is slower there and less exact
    if target.type == "cpu" and loaded.dtype == torch.bfloat16 and not computes_in_bfloat16(target):
        logger.warning(
            "model %s: in bfloat16, in which this processor does not compute. Load it in float32 (dtype, on the "
            "command line --dtype) to be many times as fast, for twice the memory",
            os.fspath(model),
        )
    return loaded.to(target).eval(), tokenizer


def _load_in_parts(
    model: str | os.PathLike[str], gguf: Path | None, dtype: str, placement: Placement
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """What is unpacked on the way to disk lies in a folder that is gone with the model."""
    folder = tempfile.TemporaryDirectory(prefix="corsa-offload-", ignore_cleanup_errors=True)
    settings = placement.as_settings(folder.name)
    if gguf:
        raise SettingError(
            f"model {gguf}: a GGUF file is unpacked in main memory as a whole, and has no device map; write it out "
            f"first, as in corsa atlas --model {gguf} --output FOLDER, and name that folder"
        )
    try:
        tokenizer, loaded = _load(model, dtype, **settings)
        # CPUs have no arithmetic for float16: it is slower there and less exact.
        if dtype == "auto" and loaded.dtype == torch.float16 and not torch.cuda.is_available():
            tokenizer, loaded = _load(model, "float32", **settings)
        placement.check(loaded)
        if is_offloaded(loaded) and has_quantised_maps(loaded):
            raise SettingError(
                f"model {os.fspath(model)} is quantised, and a part of it would be offloaded by this device map: leave "
                "disk out of it, and cpu beside a GPU, or load it unquantised"
            )
    except BaseException:
        folder.cleanup()
        raise
    weakref.finalize(loaded, folder.cleanup)
    return tokenizer, loaded


def _load(
    model: str | os.PathLike[str], dtype: str, **settings: Any
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from transformers import AutoTokenizer

    name = _expand(model)
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        inside = next((config.parent for config in sorted(folder.glob("*/config.json"))), None)
        hint = f"did you mean {inside}?" if inside else "name the folder of a saved model"
        raise LoadingError(f"model {os.fspath(model)} cannot be loaded: no config.json in this folder; {hint}")
    what = f"model {os.fspath(model)}"
    if folder.is_dir():
        check_stored(folder, what)
    with reading(f"{what} cannot be loaded", folder=name):
        tokenizer = AutoTokenizer.from_pretrained(name)
        if dtype in QUANTISED:
            rest = _saved_dtype(name, settings)
            settings |= {"dtype": rest, "quantization_config": quantisation_config(dtype, rest)}
        return tokenizer, load_whole(name, what, **{"dtype": dtype, **settings})


def _stored_quantised(model: str | os.PathLike[str]) -> bool:
    """Whether the model's own folder, or what the Hub has, is of a quantised model."""
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(_expand(model))
    except Exception:  # whatever is wrong with it is said where it is loaded
        return False
    return isinstance(config, Mapping) and config.get("quantization_config") is not None


def _saved_dtype(name: str, settings: Mapping[str, Any]) -> torch.dtype:
    """The precision that a model was saved in; float32 for float16 where only a CPU computes."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(name)
    if getattr(config, "quantization_config", None) is not None:
        raise LoadingError(f"{name} is of a quantised model already: leave the dtype out, and it is loaded as it is")
    saved = getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32
    device = settings.get("device_map", {})
    on_cpu = isinstance(device, Mapping) and {str(place) for place in device.values()} == {"cpu"}
    return torch.float32 if saved == torch.float16 and on_cpu else saved


def load_whole(name: str, what: str, **settings: Any) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained``, which refuses a checkpoint that lacks some of the model.

    A model that sees is loaded with its eyes where it was saved with them: what is written of it later lacks nothing,
    and its modules have the names by which others know them.

    Args:
        name: A folder, or a name on the Hub.
        what: What the message calls it.
        settings: Of ``from_pretrained``.

    Raises:
        LoadingError: Tensors are missing.
    """
    model, info = auto_class(name, **settings).from_pretrained(name, output_loading_info=True, **settings)
    if not all(parameter.is_meta for parameter in model.parameters()):  # another process gives it its weights
        refuse_missing(info, what)
    keep_layout(model)
    loaded: PreTrainedModel = model
    return loaded


def put_adapters(
    model: PreTrainedModel,
    adapters: Mapping[str, str | os.PathLike[str]],
    called: str = "the model",
    *,
    trainable: bool = False,
) -> Any:
    """Put PEFT adapters on a model, side by side; the first is active. One that was made for another base is warned of
    (:mod:`corsa_plugins.model.bases`).

    Args:
        model: The base model.
        adapters: At least one: by the name it is to have there, a folder or a name on the Hub.
        called: What a message calls the model.
        trainable: They are to train.

    Returns:
        The ``PeftModel``, in evaluation mode.

    Raises:
        LoadingError: There is no such adapter, it is not one of this model, or it is damaged or not whole.
        MissingExtraError: PEFT is not installed.
    """
    peft: Any = require("peft", "trl", what="an adapter")
    loaded: Any = None
    offloaded = is_offloaded(model)
    for adapter in adapters.values():  # all of them while the model has none yet
        path, what = _expand(adapter), f"adapter {os.fspath(adapter)}"
        if Path(path).is_dir():
            check_stored(Path(path), what)
            check_patterns(Path(path), what)
            warn_of_another_base(model, Path(path), what)
    for name, adapter in adapters.items():
        path, what = _expand(adapter), f"adapter {os.fspath(adapter)}"
        with (
            reading(f"{what} cannot be put on {called}", "; is it an adapter of this model?", path),
            without_device_map(model) if offloaded else nullcontext(),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "(?s).*copying from a non-meta parameter")  # done again below
            if offloaded:
                _check_offloaded(peft.PeftConfig.from_pretrained(path), what)
            if loaded is None:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Found missing adapter keys")  # which are refused below
                    loaded = peft.PeftModel.from_pretrained(model, path, adapter_name=name, is_trainable=trainable)
            # Only this tells what was not in the file, or not in the model: for the first adapter it reads it again.
            found = loaded.load_adapter(path, adapter_name=name, is_trainable=trainable)
            if offloaded and give_memory(loaded):
                peft.set_peft_model_state_dict(loaded, peft.load_peft_weights(path, device="cpu"), adapter_name=name)
            missing = [key for key in found.missing_keys if _adapter_of(key, loaded.peft_config) in (name, None)]
            _check_fits(missing, found.unexpected_keys, f"{what} does not fit {called}")
    return loaded.eval()


def _check_offloaded(config: Any, what: str) -> None:
    """Of copies of whole modules the hooks of an offloaded model would fetch what the model's own modules have."""
    if getattr(config, "modules_to_save", None):
        raise LoadingError(
            f"{what} has whole modules ({', '.join(config.modules_to_save)}), which cannot be put on a model that is "
            "partly offloaded: load the model without offloading, or merge the adapter into it first"
        )


def _adapter_of(key: str, names: Collection[str]) -> str | None:
    """Whose parameter it is; PEFT reports those of other adapters too, where a name is found anywhere in the key."""
    parts = key.split(".")
    own = [
        part
        for before, part in pairwise(parts)
        if part in names and (before.startswith("lora_") or before == "modules_to_save")
    ]
    return own[-1] if own else None


def _check_fits(missing: Sequence[str], surplus: Sequence[str], what: str) -> None:
    """Refuse an adapter that PEFT would complete by its own initial values, or take a part of."""
    if missing:
        raise LoadingError(f"{what}: {len(missing)} tensors are not in its file, for instance {sorted(missing)[0]}")
    if surplus:
        raise LoadingError(f"{what}: {len(surplus)} of its tensors have no place there, as {sorted(surplus)[0]}")


def _device(device: str | None) -> torch.device:
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise SettingError(f"device is {device!r}: name one such as cpu, cuda or cuda:1") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device is {device!r}, and this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen


def _looks_like_a_folder(path: str | os.PathLike[str]) -> bool:
    """A name on the Hub has at most one slash and starts with neither a point, a slash nor a tilde."""
    text = os.fspath(path)
    return not isinstance(path, str) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def _expand(path: str | os.PathLike[str]) -> str:
    return os.path.expanduser(os.fspath(path))
