"""A sample of each published format, with the structure of the published files: a new format adds its file here."""

from __future__ import annotations

import json
from pathlib import Path

from corsa_plugins.data.formats import read_format

DATA = Path(__file__).parents[1] / "data" / "formats" / "data"
SAMPLES = {
    "counterfact": "counterfact.json",
    "multi-counterfact": "counterfact.json",
    "easyedit": "easyedit.json",
    "zsre": "zsre.json",
    "zsre-answers": "zsre.json",
    "zsre-kilt": "zsre_kilt.jsonl",
    "alphaset": "alphaset.json",
    "knowedit": "knowedit.json",
    "mquake": "mquake.json",
    "mquake-remastered": "mquake_remastered.jsonl",
    "atoke-me": "atoke_me.json",
    "rippleedits": "rippleedits.json",
    "codeupdatearena": "codeupdatearena.jsonl",
    "codeupdatearena-update": "codeupdatearena.jsonl",
}


def read(name, file=None, **options):
    """What a format makes of its sample, or of another file beside it."""
    return read_format(name, DATA / (file or SAMPLES[name]), **options)


def records(file):
    """The records of a sample as they are."""
    text = (DATA / file).read_text("utf-8")
    return json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]
