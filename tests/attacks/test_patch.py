"""A patch is a square inside the image, changes nothing else, and wins on a model of sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.patch import Patch, Square, learn, put
from bench.base.types import DataInfo, ThreatModel
from bench.measure.cell import Sources, attack_sources
from bench.plugins.contracts import LEARNT, AttackContext
from bench.plugins.data import Split
from bench.training.loop import DivergedError

SHAPE = (3, 7, 5)
INFO = DataInfo("sums", SHAPE, 2, (0.5,) * 3, (0.3,) * 3)


def changed(x: Tensor, x_adv: Tensor) -> Tensor:
    """Return which pixels differ, (batch, height, width)."""
    return (x != x_adv).any(dim=1)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))


def context(patches: Tensor, ids: Tensor, seed: int = 0) -> AttackContext:
    found = Square(*patches.shape[:3])
    found.patches.data.copy_(patches)
    return AttackContext(INFO, seed, {LEARNT: found}, ids)


@pytest.mark.parametrize("place", [(None, None), (0, 0), (4, 2), (None, 1)])
def test_it_is_one_square_inside_the_image(x: Tensor, place: tuple[int | None, ...]) -> None:
    attack = Patch(side=3, row=place[0], column=place[1])
    patches = 2 * torch.ones(1, 3, 3, 3)  # a value that no input has: all of it shows
    y, ids = torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x))
    x_adv = attack.perturb(nn.Identity(), x, y, None, context(patches, ids)).x_adv
    corners = set()
    for row in changed(x, x_adv):
        down, across = (row.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        assert int(row.sum()) == 9
        assert len(down) == len(across) == 3  # three lines and columns with nine pixels: a square
        assert int(down[-1] - down[0]) == int(across[-1] - across[0]) == 2
        corners.add((int(down[0]), int(across[0])))
    for axis, fixed in enumerate(place):
        found = {corner[axis] for corner in corners}
        assert found == ({fixed} if fixed is not None else set(range(SHAPE[axis + 1] - 2)))
    assert torch.equal(x_adv[changed(x, x_adv)[:, None].expand_as(x)], torch.full((40 * 27,), 2.0))


def test_a_place_is_of_its_source_and_not_of_its_batch(x: Tensor) -> None:
    attack, ids = Patch(side=2), torch.arange(len(x))
    y, patches = torch.zeros(len(x), dtype=torch.int64), torch.ones(1, 3, 2, 2)

    def perturbed(rows: Tensor, seed: int = 0) -> Tensor:
        chosen = context(patches, ids[rows], seed)
        return attack.perturb(nn.Identity(), x[rows], y[rows], None, chosen).x_adv

    backwards = torch.arange(len(x)).flip(0)
    assert torch.equal(perturbed(ids), perturbed(backwards).flip(0))
    assert torch.equal(perturbed(ids)[7:8], perturbed(ids[7:8]))
    assert not torch.equal(perturbed(ids), perturbed(ids, seed=1))


def test_put_leads_the_gradient_into_the_patch(x: Tensor) -> None:
    patches = torch.rand(40, 3, 2, 2, requires_grad=True)
    rows, columns = torch.full((40,), 5), torch.arange(40) % 4
    put(x, patches, rows, columns).sum().backward()
    assert patches.grad is not None
    assert torch.equal(patches.grad, torch.ones_like(patches))


class Sums(nn.Module):
    """Class 1 where the first channel is brighter than the second by more than it is on average."""

    def forward(self, x: Tensor) -> Tensor:
        lead = (x[:, 0] - x[:, 1]).sum(dim=(1, 2)) - 5
        return torch.stack([-lead, lead], dim=1)


def test_what_wins_on_sums_is_the_brightest_against_the_darkest(x: Tensor) -> None:
    attack = Patch(side=4, steps=60)
    y = torch.zeros(len(x), dtype=torch.int64)
    found = attack.build(INFO)
    learn(attack, Sums(), Split(x, y), found, torch.Generator().manual_seed(0))
    assert torch.equal(found.patches[0, 0], torch.ones(4, 4))
    assert torch.equal(found.patches[0, 1], torch.zeros(4, 4))
    assert torch.equal(found.patches[0, 2], torch.full((4, 4), 0.5))  # it does not matter
    sources = Sources(torch.arange(40), x, y)
    evidence = attack_sources(Sums(), attack, sources, context(found.patches.detach(), y))
    attacked = evidence.records[evidence.records["status"] == "attacked"]
    assert attacked["success"].mean() > 0.9
    assert attacked["in_budget"].all()
    assert (attacked["l0_pixels"] <= 16).all()
    assert evidence.forwards == 0


def test_with_targets_there_is_a_patch_for_each(x: Tensor) -> None:
    attack = Patch(side=4, steps=60, targets="all")
    found = attack.build(INFO)
    assert found.patches.shape == (2, 3, 4, 4)
    y = Sums()(x).argmax(1)
    learn(attack, Sums(), Split(x, y), found, torch.Generator().manual_seed(0))
    assert torch.equal(found.patches[:, 0], torch.tensor([0.0, 1.0])[:, None, None].expand(2, 4, 4))
    target = torch.ones(len(x), dtype=torch.int64)
    given = context(found.patches.detach(), torch.arange(len(x)))
    x_adv = attack.perturb(Sums(), x, y, target, given).x_adv
    assert float((Sums()(x_adv).argmax(1) == 1).double().mean()) > 0.9


def test_the_budget_is_a_fraction_of_features_or_of_pixels() -> None:
    assert Patch(side=3).threat((1, 8, 8)) == ThreatModel("l0", 9 / 64, "features")
    assert Patch(side=3).threat((3, 32, 32)) == ThreatModel("l0", 9 / 1024, "features")
    assert Patch(side=3, unit="pixels").threat((3, 8, 8)) == ThreatModel("l0", 9 / 64, "pixels")


@pytest.mark.parametrize(
    ("params", "shape", "message"),
    [
        ({"side": 9}, (1, 8, 8), "side 9 is larger than images of 8 × 8"),
        ({"side": 6}, (1, 8, 5), "side 6 is larger than images of 8 × 5"),
        ({"side": 3, "row": 6}, (1, 8, 8), "at row 6 leaves images of 8 × 8: the last row is 5"),
        ({"side": 3, "column": 6}, (1, 8, 8), "at column 6 leaves"),
        ({}, (30,), r"a patch needs images \(channels, height, width\)"),
    ],
)
def test_a_patch_without_a_place_is_refused(
    params: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    for refuse in (Patch(**params).threat, lambda s: Patch(**params).build(_info(s))):
        with pytest.raises(ValueError, match=message):
            refuse(shape)


def _info(shape: tuple[int, ...]) -> DataInfo:
    return DataInfo("any", shape, 2, (0.5,), (0.3,))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"side": 0}, "side must be at least 1"),
        ({"row": -1}, "row must be at least 0"),
        ({"unit": "input"}, "unit must be 'features' or 'pixels'"),
        ({"targets": "some"}, "targets must be one of"),
        ({"output": "probs"}, "output must be one of"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patch(**params)


def test_a_loss_that_is_not_finite_ends_it(x: Tensor) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), torch.inf) * x.sum()

    attack = Patch(steps=3)
    y = torch.zeros(len(x), dtype=torch.int64)
    with pytest.raises(DivergedError, match="the attack's fit diverged: its loss at step 1 is"):
        learn(attack, Silent(), Split(x, y), attack.build(INFO), torch.Generator())
