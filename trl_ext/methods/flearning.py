"""F-Learning (Forgetting before Learning: Ni et al., ACL 2024): unlearn the old answers, then learn the new ones.

With theta the model before an update, the paper's two stages are::

    Delta_old = FT(theta, old facts) - theta
    theta'    = theta - lambda * Delta_old          (forgetting)
    theta*    = FT(theta', new facts)               (learning)

Both trainings are of a LoRA adapter here, as in the comparison of papers/corsa.md ("single LoRA").

The forgetting is subtracted from the base weights, as the paper writes it, rather than kept as a second adapter with a
negative sign: learning then starts from one model with one fresh (or continued) adapter, exactly as LoRA SFT does,
and the adapters of later updates cannot train it away. The weights before are kept in main memory until the session
is closed, and are then put back. What is subtracted is formed in float32 and rounded to the weights' precision once an
update. A quantised model cannot take it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from corsa_plugins.data.requests import EditRequest
from corsa_plugins.errors import SettingError
from corsa_plugins.methods.history import HISTORY, write_history
from corsa_plugins.model.quantised import refuse_quantised
from corsa_plugins.settings import NonNegative, check_fields
from trl_ext.history import HistoryCallback
from trl_ext.methods.adapter import lora_factors
from trl_ext.methods.lora import LORA_SFT
from trl_ext.methods.session import ADAPTER, AdapterSession
from trl_ext.methods.settings import AdapterSettings

if TYPE_CHECKING:
    from corsa_plugins.methods.spec import Session

__all__ = ["FORGETTING_RATE", "FLearningMethod"]

FORGETTING_RATE = 0.3
"""lambda by default: a choice on the testbed, where 0.1 is hardly different from LoRA SFT and 1 takes efficacy.

The learning rates, epochs and lambda of Ni et al. for each model and data set are not among the defaults: neither their
paper nor their code was at hand. Give them as ``forgetting_rate``, ``forgetting`` and ``settings``.
"""

_FORGOTTEN = "forgotten.safetensors"

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FLearningMethod:
    """Forgetting before learning, on one LoRA adapter through all updates.

    From the second update on, theta is the base weights with the forgetting of earlier updates and their adapter; the
    adapter learns the old answers for a while, its change since then is what is subtracted, and the adapter
    itself goes back to what it was before it learns the new answers.

    Attributes:
        settings: Of both trainings, shared with the other methods.
        forgetting_rate: lambda. The paper treats it as a hyperparameter of model and data; choose it on facts that are
            not reported on. 0 is LoRA SFT.
        forgetting: Fields of ``CoRSAConfig`` for the training on old answers alone, such as ``num_train_epochs``; by
            default it is trained as the new ones are.
    """

    settings: AdapterSettings = field(default_factory=AdapterSettings)
    forgetting_rate: NonNegative = FORGETTING_RATE
    forgetting: Mapping[str, Any] = field(default_factory=dict)

    name = "F-Learning"

    def __post_init__(self) -> None:
        check_fields(FLearningMethod, vars(self))

    def describe(self) -> dict[str, Any]:
        """Its settings."""
        own = {"forgetting_rate": self.forgetting_rate, "forgetting": dict(self.forgetting)}
        return {"method": self.name, **own, **self.settings.describe()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Session:
        """The model without an adapter.

        Raises:
            SettingError: The model is quantised, not in memory, or has an adapter.
        """
        return _FLearningSession(model, tokenizer, self, seed)

    def in_form(self, chat_template: bool) -> FLearningMethod:
        """With prompts in this form, unless the settings say in which."""
        return replace(self, settings=self.settings.in_form(chat_template))


class _FLearningSession(AdapterSession):
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: FLearningMethod, seed: int
    ) -> None:
        # LoRA SFT, in both stages: the old answers play no part but that of the new ones.
        super().__init__(model, tokenizer, method.settings, LORA_SFT, seed)
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or parameter.element_size() < 2 or parameter.is_meta:
                where = ", not in memory" if parameter.is_meta else ""
                raise SettingError(
                    f"{name} is stored as {parameter.dtype}{where}: F-Learning subtracts from the weights; load the "
                    "model unquantised, and so that it fits"
                )
        refuse_quantised(model, "F-Learning subtracts from the weights")
        self.method = method
        self.originals: dict[str, Tensor] = {}

    def update(self, requests: Sequence[EditRequest], folder: Path) -> None:
        complete = self.filled(requests)
        if not complete:
            return
        # Both follow the same answers: the old ones rise in the first training, and what it changed is subtracted.
        forgetting, learning = self.history(complete), self.history(complete)
        forgotten = self._learn_old(complete, folder / "forgetting", forgetting)
        _save(forgotten, self.method.forgetting_rate, folder / _FORGOTTEN)
        self._subtract(forgotten, self.method.forgetting_rate)
        self.peft = self.train(complete, folder / ADAPTER, history=learning)
        self.report(complete, folder)
        if forgetting is not None and learning is not None:
            first = [{**record, "stage": "forgetting"} for record in forgetting.records]
            write_history([*first, *learning.records], folder / HISTORY)

    def restore(self, folder: Path) -> None:
        if not (folder / ADAPTER).is_dir():
            return
        self.drop()
        self._subtract(*_load(folder / _FORGOTTEN))
        self.load(folder / ADAPTER)

    def close(self) -> None:
        super().close()
        with torch.no_grad():
            weights = dict(self.base.named_parameters())
            for name, original in self.originals.items():
                weights[name].copy_(original)
        self.originals.clear()

    def _learn_old(
        self, requests: Sequence[EditRequest], output: Path, history: HistoryCallback | None = None
    ) -> Factors:
        """Delta_old of each layer as (left, right), whose product it is; the adapter is afterwards as before."""
        old = [_learning_old(request) for request in requests]
        adapted = self.peft is not None
        state = {n: p.detach().clone() for n, p in self.peft.named_parameters() if "lora_" in n} if self.peft else {}
        before = lora_factors(self.base)
        trained = self.train(old, output, self.method.forgetting, history)
        after = lora_factors(self.base)
        shutil.rmtree(output)  # the factors say it all
        if adapted:
            with torch.no_grad():
                for name, parameter in trained.named_parameters():
                    if name in state:  # one that reads at subjects has grown; what is new of it says nothing again
                        rows, columns = state[name].shape
                        parameter.zero_()[:rows, :columns] = state[name]
        else:
            self.drop()
        if not before:  # a new adapter starts at zero
            return after
        return {
            name: (torch.cat([left, -before[name][0]], dim=1), torch.cat([right, before[name][1]]))
            for name, (left, right) in after.items()
        }

    @torch.no_grad()
    def _subtract(self, forgotten: Factors, rate: float) -> None:
        """W <- W - rate * left @ right, for each layer."""
        modules = dict(self.base.named_modules())
        layers = {name: modules.get(name) for name in forgotten}  # of fused experts' some go by other names
        fused = [name for name, each in layers.items() if not hasattr(getattr(each, "base_layer", each), "weight")]
        if fused:
            raise SettingError(
                f"F-Learning takes what is forgotten out of linear maps, and the adapter trains fused experts "
                f"({fused[0]}): name target_modules without experts in lora, or take corsa"
            )
        for name, (left, right) in forgotten.items():
            layer: Any = modules[name]
            linear: nn.Module = getattr(layer, "base_layer", layer)
            weight: Any = linear.weight
            # Named as without an adapter, which is how close() finds it.
            self.originals.setdefault(f"{name}.weight", weight.detach().to("cpu", copy=True))
            change = left.to(weight.device) @ right.to(weight.device)
            # transformers' Conv1D stores (d_in, d_out)
            change = change.T if type(linear).__name__ == "Conv1D" else change
            exact = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_(weight.to(exact) - rate * change.to(exact))


def _learning_old(request: EditRequest) -> EditRequest:
    new, old = request.target_new, request.target_old
    return EditRequest(**{**dict(request), "target_new": old, "target_old": new})


def _save(forgotten: Factors, rate: float, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{side}": t.contiguous() for name, pair in forgotten.items() for side, t in zip("lr", pair, strict=True)
    }
    save_file(tensors, path, metadata={"forgetting_rate": json.dumps(rate)})


def _load(path: Path) -> tuple[Factors, float]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = sorted({key.rpartition(".")[0] for key in file.keys()})  # noqa: SIM118 (it cannot be iterated)
        factors = {name: (file.get_tensor(f"{name}.l"), file.get_tensor(f"{name}.r")) for name in names}
        return factors, float(json.loads(file.metadata()["forgetting_rate"]))
