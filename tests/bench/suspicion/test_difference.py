"""Gradients against answers: a linear network's are equal, and each kind of lie is named."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bench.suspicion.difference import (
    FINEST,
    ROWS,
    SHARES,
    Agreement,
    agreement,
    base_points,
    finding,
)

EPS = 0.1
STEPS = tuple(EPS * share for share in SHARES)


def network(seed: int = 0, shape: tuple[int, ...] = (1, 4, 4), classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    inputs = int(torch.tensor(shape).prod())
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, classes)
    ).eval()


def points(
    count: int = 12, shape: tuple[int, ...] = (1, 4, 4), classes: int = 5
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *shape, generator=generator)
    x[x < 0.3] = 0.0  # many features lie on the border of the box
    return x, torch.randint(classes, (count,), generator=generator)


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module, other: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.other = network if other is None else other


class Cast(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.float())


class Decoy(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        gradient = self.other(x)
        return self.network(x).detach() + gradient - gradient.detach()


class Ripple(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 5e-4 * torch.sin(1e4 * x))


class Near(Wrapped):
    """Honest on the border of the box, where the data lie; another's gradient inside."""

    def forward(self, x: Tensor) -> Tensor:
        inside = ((x > 0) & (x < 1e-2)).flatten(1).any(dim=1) | (x.flatten(1).amin(dim=1) > 0)
        return torch.where(inside[:, None], Decoy(self.network, self.other)(x), self.network(x))


class Some(Wrapped):
    """Another's gradient where the first class wins."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        some = (logits.argmax(dim=1) == 0)[:, None]
        return torch.where(some, Decoy(self.network, self.other)(x), logits)


class Crash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.raises = bool((x[:, 0, 0, 0] > 0.5).any())
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.raises:
            raise RuntimeError("no way back")
        return gradient


class Crashing(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(Crash.apply(x))


class Silent(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * torch.where(x[:, :1, 0, 0] > 0.5, torch.nan, 1.0)


class Detached(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach())


def test_a_linear_network_is_explained_wholly_at_every_step() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    x, y = points(classes=2)
    found = agreement(model, x, y, STEPS)
    assert found.steps == (FINEST, *STEPS)
    assert found.reason is None
    assert found.explained.shape == (len(x), len(STEPS) + 1)
    # Two classes: the log-odds are linear too.
    for part in (found.explained, found.cosine, found.gain):
        assert torch.allclose(part, torch.ones_like(part), atol=1e-3)
    assert not found.broken.any()


@pytest.mark.parametrize("shape", [(7,), (1, 4, 4), (3, 5, 5)])
def test_an_honest_network_agrees_on_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    x, y = points(shape=shape)
    model = network(shape=shape)
    for at in base_points(model, x, y, EPS).values():
        assert at.shape == x.shape
        assert (at - x).abs().amax() <= EPS + 1e-6
        assert at.amin() >= 0
        assert at.amax() <= 1
        assert finding(agreement(model, at, y, STEPS)).kind == "agrees"


def test_forward_passes_are_as_many_as_stated() -> None:
    model, asked = network(), []
    x, y = points()
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    found = agreement(model, x, y, STEPS)
    assert sum(asked) == found.forwards * len(x) <= 300 * len(x)
    assert min(asked) > 0
    with pytest.raises(ValueError, match="no base points"):
        agreement(model, x[:0], y[:0], STEPS)


def test_rows_do_not_depend_on_their_companions_and_the_seed_decides() -> None:
    model, (x, y) = network(), points()
    whole, part = agreement(model, x, y, STEPS), agreement(model, x[3:5], y[3:5], STEPS)
    assert torch.allclose(whole.explained[3:5], part.explained, atol=1e-3)
    assert torch.equal(whole.explained, agreement(model, x, y, STEPS).explained)
    assert not torch.equal(whole.cosine, agreement(model, x, y, STEPS, seed=1).cosine)


@pytest.mark.parametrize(
    ("lie", "kind"),
    [(Decoy, "foreign"), (Ripple, "shattered"), (Detached, "foreign"), (Some, "partial")],
)
def test_a_lie_is_named(lie: type[Wrapped], kind: str) -> None:
    x, y = points(40)
    model = lie(network(), network(1)).eval()
    assert finding(agreement(model, x, y, STEPS)).kind == kind


def test_what_is_honest_at_the_data_alone_is_found_on_the_way_of_an_attack() -> None:
    x, y = points(40)
    model = Near(network(), network(1)).eval()
    points_ = base_points(model, x, y, EPS)
    assert finding(agreement(model, points_["noise"], y, STEPS)).kind == "foreign"


def test_a_model_that_casts_is_measured_in_float32_alone() -> None:
    x, y = points()
    found = agreement(Cast(network()).eval(), x, y, STEPS)
    assert found.steps == STEPS
    assert found.reason is not None
    assert "dtype" in found.reason
    assert finding(found).kind == "agrees"


def test_half_precision_says_nothing_below_its_rounding_and_agrees_above() -> None:
    x, y = points()

    class Low(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.bfloat16()).float()

    found = agreement(Low(copy.deepcopy(network()).bfloat16()).eval(), x, y, STEPS)
    assert found.explained[:, 0].isnan().any()
    assert not found.explained[:, 2:].isnan().any()
    assert finding(found).kind == "agrees"


def test_rows_without_a_gradient_are_broken_and_the_others_measured() -> None:
    x, y = points()
    raises = x[:, 0, 0, 0] > 0.5
    found = agreement(Crashing(network()).eval(), x, y, STEPS)
    assert torch.equal(found.broken, raises)
    assert raises.double().mean() > ROWS
    assert (found.explained[~raises, :3] > 0.9).all()
    assert finding(found).kind in ("broken", "foreign")


def test_an_answer_that_is_no_number_says_nothing() -> None:
    x, y = points()
    found = agreement(Silent(network()).eval(), x, y, STEPS)
    silent = x[:, 0, 0, 0] > 0.7
    assert silent.any()
    assert found.explained[silent].isnan().all()
    loud = x[:, 0, 0, 0] < 0.3
    assert (found.explained[loud, :2] > 0.9).all()


def test_a_single_row_is_held_against_the_threshold_of_its_own_step() -> None:
    def found(first: float) -> str:
        explained = torch.tensor([first, 0.75, 0.5, 0.3], dtype=torch.float64).expand(40, -1)
        nothing = torch.zeros(40, 4)
        said = Agreement((1, 2, 3, 4), nothing, explained, nothing, nothing[:, 0] > 0, 0, "half")
        return finding(said).kind

    assert found(0.9) == "agrees"
    assert found(float("nan")) == "agrees"  # half precision says nothing at the smallest step
    assert found(0.75) == "partial"
