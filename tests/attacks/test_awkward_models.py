"""Models that refuse empty batches, answer NaN, lose gradient entries or work in half precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.carlini_wagner.plugin import CarliniWagner
from attacks.fgsm import FGSM
from attacks.fooling import Fooling
from attacks.jsma import jsma
from attacks.jsma.plugin import Jsma
from attacks.noise import Noise
from attacks.pgd import PGD, pgd
from attacks.sigma_zero import SigmaZero, sigma_zero
from attacks.sparse_rs import SparseRs, sparse_rs
from attacks.transfer import Transfer
from bench.base.types import DataInfo
from bench.plugins import discovery
from bench.plugins.contracts import Attack, AttackContext

INFO = DataInfo("awkward", (6,), 3, (0.0,), (1.0,))


class Refusing(nn.Module):
    """A linear model that raises on no rows, as ``x.view(x.size(0), -1)`` does."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(scale * torch.randn(3, 6, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1) @ self.weight.T


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    x = torch.rand(7, 6, generator=torch.Generator().manual_seed(0))
    return x, Refusing()(x).argmax(1)


NATIVE: list[Attack] = [
    PGD(eps=0.9, restarts=3),
    PGD(eps=0.9, early_stop=False, steps=3),
    PGD(eps=0.9, restarts=2, targets="all"),
    Jsma(max_features=6),
    Jsma(max_features=1, saliency="single"),
    SparseRs(max_features=6, queries=50),
    SigmaZero(steps=20),
    SigmaZero(steps=20, max_features=6, targets="all"),
    *(CarliniWagner(norm=norm, steps=20, searches=3) for norm in ("l2", "l0", "linf")),
    FGSM(eps=0.9),
    FGSM(eps=0.9, precision="float64"),
    Noise(eps=0.9),
    Noise(norm="l0", max_features=5),
    Fooling(confidence=0.5),
]


@pytest.fixture(autouse=True, scope="module")
def plugins() -> None:
    discovery.load_plugins()


def test_transfer_asks_its_source_about_some_rows(rows: Any) -> None:
    attack = Transfer(attack={"name": "pgd", "eps": 0.9, "early_stop": True, "restarts": 2})
    context = AttackContext(INFO, fitted={"source": Refusing(4.0)})
    assert attack.perturb(Refusing(), *rows, None, context).x_adv.shape == rows[0].shape


@pytest.mark.parametrize("attack", NATIVE, ids=repr)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_no_attack_asks_about_no_rows(attack: Attack, count: int, rows: Any) -> None:
    x, y = rows[0][:count], rows[1][:count]
    model = Refusing(4.0)
    context = AttackContext(INFO, sample_ids=torch.arange(count))
    target = (y + 1) % 3 if attack.targeted else None
    assert attack.perturb(model, x, y, target, context).x_adv.shape == x.shape


def test_rows_of_a_chunk_may_all_leave_early(rows: Any) -> None:
    model, (x, y) = Refusing(), rows
    result = pgd(model, x, y, eps=1.0, chunk=2, restarts=2)
    assert result.success.all()
    assert sigma_zero(model, x, y, chunk=2, steps=200).success.all()
    assert sparse_rs(model, x, y, max_features=6, chunk=2).success.all()


class PartlyNan(torch.autograd.Function):
    """The identity, with a gradient that is NaN or infinite in every other entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        gradient[:, 0], gradient[:, 1] = torch.nan, torch.inf
        return gradient


class AllNan(torch.autograd.Function):
    """The identity, with a gradient that is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


WHITE: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "pgd": lambda model, x, y: pgd(model, x, y, eps=0.01, steps=4, random_start=False),
    "jsma": lambda model, x, y: jsma(model, x, (y + 1) % 3, gamma=1.0, theta=0.05),
    "jsma-logits": lambda model, x, y: jsma(
        model, x, (y + 1) % 3, gamma=1.0, theta=0.05, output="logits"
    ),
    "sigma_zero": lambda model, x, y: sigma_zero(model, x, y, steps=4),
}


@pytest.mark.parametrize("name", WHITE)
def test_entries_that_are_no_number_are_no_gradient(name: str, rows: Any) -> None:
    model, (x, y) = Refusing(), rows
    part = WHITE[name](lambda z: model(PartlyNan.apply(z)), x, y)
    assert part.zero_gradients.sum() == 0
    none = WHITE[name](lambda z: model(AllNan.apply(z)), x, y)
    assert (none.zero_gradients > 0).all()
    if name != "sigma_zero":  # which returns the clean input where it fails
        moved = (part.x_adv != x).any(0)
        assert moved[2:].any()
        assert none.x_adv.equal(x)
    if name == "pgd":
        assert not moved[:2].any()  # an infinite entry, too, is none


class Silent(nn.Module):
    """A model that answers NaN once the first feature exceeds what it tolerates."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack((10 - x.sum(1), x.sum(1), 0 * x.sum(1)), 1)
        return torch.where(x[:, :1] > 0.55, torch.nan, logits)


@pytest.mark.parametrize(
    "attack",
    [
        lambda x, y: pgd(Silent(), x, y, eps=0.1),
        lambda x, y: pgd(Silent(), x, y, eps=0.1, early_stop=False),
        lambda x, y: sparse_rs(Silent(), x, y, max_features=1, queries=200),
        lambda x, y: jsma(Silent(), x, y + 1, gamma=1.0, theta=0.1),
        lambda x, y: sigma_zero(Silent(), x, y, steps=100),
    ],
    ids=["pgd", "pgd-climbs", "sparse_rs", "jsma", "sigma_zero"],
)
def test_an_answer_that_is_none_is_what_is_returned(attack: Any) -> None:
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    result = attack(x, y)
    assert Silent()(result.x_adv).isnan().any(1).all()
    assert not result.success.any()


def test_noise_keeps_an_answer_that_is_none() -> None:
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    found = Noise(eps=0.1).perturb(Silent(), x, y, None, AttackContext(INFO))
    assert Silent()(found.x_adv).isnan().any(1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inside", [True, False])
def test_half_precision_is_attacked(dtype: torch.dtype, inside: bool, rows: Any) -> None:
    half, (x, y) = Refusing(3.0).to(dtype), rows

    def casting(z: Tensor) -> Tensor:
        return half(z.to(dtype))

    model, given = (casting, x) if inside else (half, x.to(dtype))
    y = casting(x).argmax(1)
    for result in (
        pgd(model, given, y, eps=0.5),
        sparse_rs(model, given, y, max_features=5, queries=50),
        sparse_rs(model, given, y, (y + 1) % 3, max_features=5, queries=50),
        sigma_zero(model, given, y, steps=60),
        *(jsma(model, given, (y + 1) % 3, gamma=1.0, output=o) for o in ("log_odds", "probs")),
        jsma(model, given, (y + 1) % 3, gamma=1.0, output="logits", saliency="taylor"),
    ):
        assert result.x_adv.dtype == given.dtype
        assert result.x_adv.isfinite().all()


@pytest.mark.parametrize("targeted", [False, True])
def test_scaled_log_odds_do_not_see_the_scale(targeted: bool, rows: Any) -> None:
    x, y = rows
    found = [
        pgd(
            Refusing(scale), x, y, (y + 1) % 3 if targeted else None, eps=0.05, norm="l2",
            output="scaled_log_odds", early_stop=False,
        ).x_adv
        for scale in (1.0, 1e-2, 1e3)
    ]  # fmt: skip
    assert (found[0] - x).abs().max() > 0.01
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=0)


def test_jsma_takes_a_single_feature(rows: Any) -> None:
    model, (x, y) = Refusing(), rows
    attack = Jsma(max_features=1, saliency="single")
    found = attack.perturb(model, x, y, (y + 1) % 3, AttackContext(INFO))
    assert ((found.x_adv != x).sum(1) <= 1).all()
    assert (found.x_adv != x).any()
