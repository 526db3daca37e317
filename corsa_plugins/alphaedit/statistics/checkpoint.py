"""Keeping the sums of a collection in a file that the work can be taken up from."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from corsa_plugins.alphaedit.statistics.packing import Position, ResumeError, TokenRows
from corsa_plugins.alphaedit.statistics.sums import KeySums
from corsa_plugins.errors import DamagedError
from corsa_plugins.files import atomic_write_tensors
from corsa_plugins.model.architecture import Architecture, LinearMap
from corsa_plugins.model.identity import Fingerprint, tensors_digest, vocabulary_digest
from corsa_plugins.parsing import json_value
from corsa_plugins.sealed import sealed, unsealed
from corsa_plugins.temporaries import remove_abandoned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "Identity", "remove_outlived"]

logger = logging.getLogger(__name__)

PARTIAL = "partial.safetensors"


@dataclass(frozen=True)
class Identity:
    """What must be the same for work to be taken up again.

    Attributes:
        fingerprint: Of the model.
        tokenizer: Digest of its vocabulary and kind.
        settings: Settings that decide what the sums are of, and the model's precision.
    """

    fingerprint: Fingerprint
    tokenizer: str
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        architecture: Architecture,
        maps: Mapping[int, LinearMap],
        settings: Mapping[str, Any],
    ) -> Identity:
        """The identity of a collection."""
        fixed = {"layers": list(maps), "dtype": str(model.dtype).removeprefix("torch."), **settings}
        return cls(Fingerprint.of(model, architecture), vocabulary_digest(tokenizer), fixed)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "fingerprint": self.fingerprint.as_dict(), "tokenizer": self.tokenizer, "settings": dict(self.settings)
        }  # fmt: skip

    def check(self, begun: Mapping[str, Any], path: Path) -> None:
        """Compare with that of work in ``path``.

        Raises:
            ResumeError: They differ; the message says in what.
        """
        fingerprint = Fingerprint.from_dict(begun["fingerprint"])
        reasons = [
            f"{name} was {begun['settings'].get(name)!r} and is {value!r}"
            for name, value in self.settings.items()
            if begun["settings"].get(name) != value
        ]
        different = fingerprint.difference(self.fingerprint)
        if different is not None:
            reasons.append(f"the model was {fingerprint} and is {self.fingerprint} ({different})")
        if begun["tokenizer"] != self.tokenizer:
            reasons.append("the tokenizer has another vocabulary")
        if reasons:
            raise ResumeError(
                f"{path} was begun differently: {'; '.join(reasons)}. Go on as it was begun, or begin anew with "
                "fresh=True (corsa stats --fresh)"
            )


class Checkpoint:
    """The work so far, in one file of a folder. As a context, it is also kept when an error or Ctrl-C ends the block.

    Args:
        folder: Where the statistics will be.
        identity: Of this collection.
        seconds: Time between two savings.
    """

    def __init__(self, folder: Path, identity: Identity, seconds: float) -> None:
        self.path = folder / PARTIAL
        self.identity = identity
        self.seconds = seconds
        self._last = time.monotonic()
        self._sums: KeySums | None = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Half-added sums are of no use: the file from before is still there.
        if error is not None and self._sums is not None and self._sums.whole and self._save(self._sums):
            error.add_note(f"{self._sums.count} tokens are kept in {self.path}: the same call goes on from there")

    def resume(self, sums: KeySums, rows: TokenRows) -> None:
        """Bring ``sums`` and ``rows`` to where the work was left, if there is any.

        Raises:
            ResumeError: It was another model, text or setting, or the file is damaged.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                state = unsealed(json_value((file.metadata() or {})["state"]), str(self.path))
                self.identity.check(state["identity"], self.path)
                position = Position(**{**state["position"], "pending": tuple(state["position"]["pending"])})
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            if state["tensors"] != tensors_digest(tensors):
                raise DamagedError("its tensors are not those that were written")
            rows.skip_to(position)
            sums.restore(tensors, int(state["count"]), position)
        except ResumeError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ResumeError(
                f"{self.path} is damaged, or of another version ({type(error).__name__} {error}): begin anew with "
                "fresh=True (corsa stats --fresh)"
            ) from error
        logger.warning("going on after %d tokens, from %s", sums.count, self.path)

    def keep(self, sums: KeySums, now: bool = False) -> None:
        """Save the sums if it is time to, or ``now``."""
        self._sums = sums
        if now or time.monotonic() - self._last >= self.seconds:
            self._save(sums)
            self._last = time.monotonic()

    def _save(self, sums: KeySums) -> bool:
        tensors = sums.tensors()
        state = {
            "identity": self.identity.as_dict(),
            "count": sums.count,
            "position": asdict(sums.position),
            "tensors": tensors_digest(tensors),
        }
        try:
            atomic_write_tensors(self.path, tensors, {"state": json.dumps(sealed(state))})
        except OSError as error:  # the work is not lost yet: better go on than stop for the copy of it
            logger.warning("the work so far cannot be saved: %s", error)
            return False
        return True

    def remove(self) -> None:
        """Remove the file, and what a killed process left of one: the work is done, or begins anew."""
        self.path.unlink(missing_ok=True)
        remove_abandoned(self.path.resolve())


def remove_outlived(finished: Path) -> None:
    """Remove a checkpoint of statistics that were finished: their process was killed before it came to that.

    Args:
        finished: The last file of the statistics. A checkpoint that is younger is of work that begins anew.
    """
    path = finished.parent / PARTIAL
    with suppress(FileNotFoundError):
        if path.stat().st_mtime_ns <= finished.stat().st_mtime_ns:
            path.unlink()
    remove_abandoned(path.resolve())
