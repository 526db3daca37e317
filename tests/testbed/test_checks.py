"""What a testbed promises is what is measured of it, and a broken one is found out."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from corsa_plugins.testbed import Testbed
from corsa_plugins.testbed.checks import check_testbed, knowledge, value_reach


def test_promises_are_of_every_form_and_of_edits(reduced: Testbed) -> None:
    promises = check_testbed(reduced, edits=3)
    measured = {promise.name: promise.share for promise in promises}
    known = {f"facts known, {form}": share for form, share in knowledge(reduced).items()}
    reach = value_reach(reduced, n=3, seed=0)
    assert measured == {**known, "edits reached by a vector at the last subject token": reach.reached}
    for promise in promises:
        assert replace(promise, share=promise.least).kept
        assert not replace(promise, share=promise.least - 0.01).kept


def test_a_model_that_forgot_its_world_breaks_them(reduced: Testbed) -> None:
    model = copy.deepcopy(reduced.model)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    promises = check_testbed(replace(reduced, model=model), edits=1)
    assert not any(promise.kept for promise in promises if promise.name.startswith("facts known"))
