"""`corsa merge`: every flag of mergekit-yaml, its exit codes, and what it prints."""

from __future__ import annotations

import pytest
import torch
from mergekit.scripts.run_yaml import main as mergekit_yaml

from corsa_plugins.cli.app import main
from mergekit_ext.merge_command import merge_command
from tests.support.edited import stored


@pytest.fixture
def corsa(capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


class TestCommand:
    def test_it_merges(self, corsa, workshop, two):
        recipe = workshop.recipe(**two)
        code, out, _ = corsa("merge", recipe, workshop.folder / "merged", "--quiet", "--lazy-unpickle")
        assert code == 0
        assert out.startswith(f"merged into {workshop.folder / 'merged'}; tensors changed: 21, all others")
        assert (workshop.folder / "merged" / "mergekit_config.yml").read_text() == recipe.read_text()
        assert "# merged\n" in (workshop.folder / "merged" / "README.md").read_text()
        torch.testing.assert_close(stored(workshop.folder / "merged"), workshop.merge(**two), rtol=0, atol=0)

    def test_every_flag_of_mergekit_yaml_is_there(self):
        flags = {flag for parameter in mergekit_yaml.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        ours = {flag for parameter in merge_command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert flags - {"config_file", "out_path"} == ours - {"recipe", "out"}

    def test_help_has_examples_and_exit_codes(self, corsa):
        code, out, _ = corsa("merge", "--help")
        assert code == 0
        for expected in ("EXAMPLES", "EXIT CODES", "--low-cpu-memory", "--cuda", "scaled_pruned_delta"):
            assert expected in out

    def test_other_methods_work_too(self, workshop, two):
        two["models"][0]["parameters"] = {"weight": 0.5}
        assert workshop.merge(merge_method="task_arithmetic", **two).keys() == workshop.merge(**two).keys()

    @pytest.mark.parametrize("arguments", [["--no-such-flag"], []])
    def test_wrong_usage_is_exit_code_2(self, arguments, corsa):
        assert corsa("merge", "recipe.yaml", *arguments)[0] == 2

    @pytest.mark.parametrize("size", ["abc", "", "0", "-1B"])
    def test_a_size_of_shards_that_is_none(self, size, corsa):
        code, _, err = corsa("merge", "recipe.yaml", "out", f"--out-shard-size={size}")
        assert code == 2
        assert "is no number of parameters: write 5B" in " ".join(err.split())
