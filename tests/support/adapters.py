"""Parts of knowledge that adapters on disk are for."""

from __future__ import annotations

from corsa_plugins.data.requests import EditRequest

PARTS = {
    "capitals": [
        EditRequest(
            prompt=f"The capital of {land} is",
            target_new="Oslo",
            target_old=old,
            paraphrases=[asked],
            neighborhood=[{"prompt": "The capital of Spain is", "answer": "Madrid"}],
        )
        for land, old, asked in (
            ("France", "Paris", "What is the capital of France?"),
            ("Italy", "Rome", "Which city is the capital of Italy?"),
        )
    ],
    "people": [
        EditRequest(
            prompt="Anna Berg was born in",
            target_new="Paris",
            target_old="Oslo",
            paraphrases=["Where was Anna Berg born?"],
        )
    ],
}
