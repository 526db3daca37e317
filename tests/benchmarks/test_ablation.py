"""The variants of the ablation are what their names say."""

from __future__ import annotations

from benchmarks.ablation import ABLATION
from corsa_plugins.bench.protocols.plan import folder_name
from trl_ext import CoRSAConfig


def test_the_ablation_switches_off_what_its_names_say() -> None:
    assert ABLATION["LoRA SFT"] == {"dpo_weight": 0.0, "sam_rho": 0.0}
    assert ABLATION["+ DPO"] == {"sam_rho": 0.0, "pcgrad": False}
    assert ABLATION["+ DPO + SAM"] == {"pcgrad": False}
    assert ABLATION["+ DPO + SAM + PCGrad (CoRSA)"] == {}
    assert ABLATION["CoRSA without SAM"] == {"sam_rho": 0.0}
    assert ABLATION["CoRSA without DPO"] == {"dpo_weight": 0.0}
    for settings in ABLATION.values():
        CoRSAConfig("out", use_cpu=True, **settings)


def test_every_variant_has_a_folder_of_its_own() -> None:
    assert len({folder_name(name) for name in ABLATION}) == len(ABLATION)
