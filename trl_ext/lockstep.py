"""A trainer whose processes each keep a part of the base model, and so run it in step: none more often than another."""

from __future__ import annotations

from typing import Any

from torch import nn

from corsa_plugins.corsa import TwoBackwards, TwoPasses
from corsa_plugins.errors import SettingError
from trl_ext._trl import PreferenceTrainer
from trl_ext.sharding import first_process_reads, largest, not_by_accelerate, shard, sharding_asked_for

__all__ = ["LockstepTrainer"]


class LockstepTrainer(PreferenceTrainer):
    """A trainer that shards its base model (:mod:`trl_ext.sharding`) where accelerate's configuration asks for it.

    A subclass calls :meth:`shard_base` in its constructor before anything is run.

    Attributes:
        sharding: How, or ``None``: the whole model is in every process.
    """

    _parameters: list[nn.Parameter]

    def __init__(self, model: Any, ref_model: Any, args: Any, *positional: Any, **kwargs: Any) -> None:
        with first_process_reads(sharding_asked_for(args)):
            super().__init__(model, ref_model, args, *positional, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """As :class:`~transformers.Trainer`'s, for an accelerator that leaves the sharding to this trainer."""
        self.sharding = sharding_asked_for(self.args)
        with not_by_accelerate(self.args):
            super().create_accelerator_and_postprocess()
        # While the trainer is made: nobody puts the whole model on this process's device.
        self.is_fsdp_enabled = self.sharding is not None

    def shard_base(self, reference: nn.Module | None) -> None:
        """Shard the base model, if that is asked for.

        Args:
            reference: A model of its own that was given as the reference.

        Raises:
            SettingError: It cannot be sharded, or another setting does not go with that.
        """
        self.is_fsdp_enabled = False  # what trains, and so what is saved, is whole in every process
        if self.sharding is None:
            return
        if reference is not None:
            raise SettingError(
                "ref_model is not sharded: leave it out, and the reference is the model without its adapter."
            )
        if not self.accelerator.even_batches:
            raise SettingError("even_batches=False in accelerator_config is not supported in shards: leave it out.")
        shard(self.model, self.sharding, self.args.device)
        prepare = self.accelerator.prepare_model

        def prepared(model: Any, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
            """Neither moved nor wrapped: DDP has nothing to do where gradients are averaged by the trainer."""
            return prepare(model, device_placement=False, evaluation_mode=True)

        self.accelerator.prepare_model = prepared

    def largest(self, here: int) -> int:
        """The largest of the numbers of the processes that run in step; without sharding, the one that is given."""
        return here if self.sharding is None else largest(here, self.args.device)

    def two_backwards(self) -> TwoBackwards:
        """Both gradients from a backward pass each: with ZeRO-3, which gathers a layer once for what ran forward once,
        from a forward pass each as well."""
        by_zero = self.sharding is not None and self.sharding.zero is not None
        return (TwoPasses if by_zero else TwoBackwards)(self._parameters)

    def in_any_process(self, here: bool) -> bool:
        """Whether it is so in any of the processes that run in step; without sharding, whether it is so here."""
        return bool(self.largest(int(here)))
