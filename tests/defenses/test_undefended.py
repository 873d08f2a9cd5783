"""The undefended network and its twin."""

import torch

from bench.base.types import Spec
from bench.conformance.models import fitted
from defenses.undefended import Twin, Undefended


def test_a_twin_learns_the_same_way_from_another_seed(data) -> None:
    assert Twin.fit is Undefended.fit
    from bench.training.fit import derive_seed

    names = ("undefended", "twin")
    one, two = (fitted(Spec(name), data, derive_seed(0, name)).state_dict() for name in names)
    assert one.keys() == two.keys()
    assert not any(torch.equal(one[key], two[key]) for key in one)
    same = fitted(Spec("twin"), data, derive_seed(0, "undefended")).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
