"""Models on disk that are not complete."""

from __future__ import annotations

from tests.support.edited import changed


class TestIncomplete:
    def test_a_missing_shard(self, refuse, workshop, base_model, two):
        path = workshop.save("sharded", changed(base_model, 1), max_shard_size="40KB")
        shard = sorted((workshop.folder / "sharded").glob("model-*.safetensors"))[1]
        shard.unlink()
        two["models"][0]["model"] = path
        refuse(rf"model {path}: shard {shard.name} is missing", **two)

    def test_a_shard_cut_short(self, refuse, workshop, two):
        file = workshop.folder / "edited" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        refuse(rf"{file} cannot be read", **two)

    def test_no_model_there(self, refuse, workshop, two):
        refuse("no such folder: ./nowhere", **{**two, "models": [{"model": "./nowhere"}]})
        (workshop.folder / "empty").mkdir()
        empty = str(workshop.folder / "empty")
        refuse("has no config.json", **{**two, "models": [{"model": empty}]})
        (workshop.folder / "empty" / "config.json").write_text("{}")
        refuse("has no weights", **{**two, "models": [{"model": empty}]})
