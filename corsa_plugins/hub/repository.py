"""A repository on the Hub: found to be writable before any work, and filled when it is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from corsa_plugins.errors import CorsaError
from corsa_plugins.hub.card import Made, card_text
from corsa_plugins.hub.contents import CARD, Contents, Kind, contents_of

__all__ = ["HubError", "Repository", "open_repository"]


class HubError(CorsaError, OSError):
    """The Hub cannot be reached, or refuses; the message says what to do, and that nothing is lost."""


@dataclass(frozen=True)
class Repository:
    """A repository that can be written to.

    Attributes:
        name: ``owner/name``.
        type: ``"model"`` or ``"dataset"``.
    """

    name: str
    type: str
    _api: Any

    def upload(self, path: str | os.PathLike[str], made: Made | None = None) -> str:
        """Put a folder, or a file of requests, and its card into the repository, in one commit.

        A card that the folder has is taken as it is, unless ``made`` tells more. Files that the repository has under
        other names stay there.

        Args:
            path: As for :func:`~corsa_plugins.hub.contents.contents_of`.
            made: What the card is to say beyond the folder.

        Returns:
            The address of the repository.

        Raises:
            ContentsError: There is nothing for the Hub, or something for a repository of the other type.
            HubError: The upload failed. The Hub has all of it or nothing, and the folder is as it was.
        """
        from huggingface_hub import CommitOperationAdd

        contents = contents_of(path)
        if contents.kind.repository != self.type:
            raise HubError(f"{path} is for a {contents.kind.repository} repository, and {self.name} is a {self.type}'s")
        card = self._card(contents, made).encode("utf-8")
        added = [CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card)]
        added += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in contents.files.items()]
        again = f"all of it is in {path}; to upload it again: corsa push {path} {self.name}"
        with _told(f"{path} cannot be uploaded to {self.name}", again):
            self._api.create_commit(
                repo_id=self.name, repo_type=self.type, operations=added, commit_message=f"Upload {contents.kind}"
            )
        return f"{self._api.endpoint}/{'datasets/' if self.type == 'dataset' else ''}{self.name}"

    def _card(self, contents: Contents, made: Made | None) -> str:
        if made is None and contents.card is not None:
            return contents.card.read_text(encoding="utf-8")
        return card_text(contents, made, self.name)


def open_repository(
    name: str, kind: Kind | str = "model", *, private: bool = False, token: str | None = None
) -> Repository:
    """Make a repository, or find the one that is there, with the right to write to it: before any work is done for it.

    Args:
        name: ``owner/name``, or a name alone for one of the user's own.
        kind: What is to go there, or its type: ``"model"`` or ``"dataset"``.
        private: It must be private; one that is made is.
        token: By default the one of ``hf auth login``, or of ``HF_TOKEN``.

    Raises:
        HubError: There is no token, the name cannot be one, the Hub is out of reach or refuses, or the repository is
            there and public although ``private`` is asked for.
    """
    from huggingface_hub import HfApi, get_token

    type_ = kind.repository if isinstance(kind, Kind) else kind
    if token is None and get_token() is None:
        raise HubError(
            f"nothing can be pushed to {name}: there is no token of the Hub. Run `hf auth login`, or set HF_TOKEN "
            "to one with the right to write"
        )
    api = HfApi(token=token)
    with _told(
        f"nothing can be pushed to {name}", "see the token's rights, the name and the network; nothing was done"
    ):
        made = api.create_repo(name, repo_type=type_, private=private or None, exist_ok=True)
        whole = getattr(made, "repo_id", name)
        found = api.repo_info(whole, repo_type=type_)
    if private and not found.private:
        raise HubError(f"{whole} is there and public, and --private was asked for: name another, or make it private")
    return Repository(whole, type_, api)


@contextmanager
def _told(what: str, todo: str) -> Iterator[None]:
    """Within the block, whatever the Hub's client raises is one error that says what to do."""
    try:
        yield
    except CorsaError:
        raise
    except Exception as error:  # its client raises errors of several libraries
        said = " ".join(str(error).split()) or repr(error)
        raise HubError(f"{what}: {said.rstrip('.')}; {todo}") from error
