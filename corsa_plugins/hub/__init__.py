"""What this project writes, on the Hugging Face Hub: adapters, edit states, edited models and edit requests.

* :mod:`~corsa_plugins.hub.contents`: what of a folder, or of a file, goes to the Hub, and under which names;
* :mod:`~corsa_plugins.hub.card`: the card that says what was edited, of what, by what, and with which figures;
* :mod:`~corsa_plugins.hub.repository`: a repository that is found to be writable before any work, and the upload.
"""

from corsa_plugins.hub.card import METHOD, SETTINGS, Made, card_text, fingerprint_of, write_card
from corsa_plugins.hub.contents import Contents, Kind, contents_of
from corsa_plugins.hub.repository import HubError, Repository, open_repository

__all__ = [
    "METHOD",
    "SETTINGS",
    "Contents",
    "HubError",
    "Kind",
    "Made",
    "Repository",
    "card_text",
    "contents_of",
    "fingerprint_of",
    "open_repository",
    "write_card",
]
