"""Rows that other weights answer: seen by the gradient with respect to the weights."""

import pytest
import torch
from torch import Tensor, nn

from bench.suspicion.routes import around, denoised, routed
from bench.suspicion.suspect import suspect

X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(),
                         nn.Linear(8, 3)).eval()  # fmt: skip


class Router(nn.Module):
    """One network below a mean, another above; softly within a width."""

    def __init__(self, threshold: float, width: float = 0.0, held: bool = False) -> None:
        super().__init__()
        self.first, self.second = network(1), network(2)
        self.threshold, self.width = threshold, width
        if held:  # as buffers, which are no parameters
            for module in (self.first, self.second):
                for layer in module:  # type: ignore[attr-defined]
                    for name, weight in list(layer.named_parameters(recurse=False)):
                        delattr(layer, name)
                        layer.register_buffer(name, weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(dim=1, keepdim=True) - self.threshold
        gate = (over > 0).float() if not self.width else torch.sigmoid(over / self.width)
        if not self.width:
            return torch.where(gate > 0, self.first(x), self.second(x))
        return gate * self.first(x) + (1 - gate) * self.second(x)


def test_one_network_answers_all_rows() -> None:
    assert routed(network(0), [X]) == 0.0
    both = nn.Sequential(network(0), nn.Linear(3, 3))
    assert routed(both, [X]) == 0.0
    assert routed(nn.Sequential(nn.Flatten()), [X]) is None  # without weights
    assert routed(network(0), [X[:0]]) is None


@pytest.mark.parametrize(("width", "held"), [(0.0, False), (0.001, False), (0.0, True)])
def test_rows_that_go_another_way_are_counted(width: float, held: bool) -> None:
    means = X.flatten(1).mean(dim=1)
    threshold = float(means.sort().values[30:32].mean())
    model = Router(threshold, width, held).eval()
    before = [weight.requires_grad for weight in model.parameters()]
    found = routed(model, [X, X[:10]])
    assert found == pytest.approx(9 / 40, abs=0.1)
    assert [weight.requires_grad for weight in model.parameters()] == before
    assert all(weight.grad is None for weight in model.parameters())


def test_gradients_of_very_different_size_are_no_other_way() -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.LayerNorm(8, eps=1e-12), nn.Linear(8, 3)).eval()
    even = torch.cat([X[:10], 0.5 + 1e-5 * X[10:20], 1e-6 * X[20:30]])
    assert routed(model, around(even, 0.01)) == 0.0


def test_a_denoised_row_lies_nearer_to_what_all_have_in_common() -> None:
    near = denoised(X, 0.1)
    assert (near - X).abs().max() <= 0.1 + 1e-6
    assert 0 <= near.min() <= near.max() <= 1
    flat, again = (rows.flatten(1) - X.flatten(1).mean(dim=0) for rows in (X, near))
    axes = torch.linalg.svd(flat, full_matrices=False)[2][:16]
    assert len(axes) == 16  # of 16 features: nothing is left over, and nothing moves
    assert torch.allclose(flat, again, atol=1e-5)
    few = denoised(X[:8], 0.5)
    assert torch.linalg.matrix_rank((few - few.mean(dim=0)).flatten(1), rtol=1e-2) <= 8


def test_a_model_that_routes_is_suspected_and_one_without_rows_is_not() -> None:
    threshold = float(X.flatten(1).mean(dim=1).median())
    model = Router(threshold).eval()
    found = suspect(lambda: model, lambda module: module, X, Y, 0.1)
    assert found.routed is not None
    assert found.routed > 0.2
    assert "routed" not in found.errors
    assert suspect(lambda: model, lambda module: module, X[:0], Y[:0], 0.1).routed is None


class Keyed(nn.Module):
    """Another network where no feature lies on a face of the box, or some lie almost there."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.first, self.second, self.key = network(1), network(2), key

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        near = (flat.minimum(1 - flat) > 0).all(dim=1)
        if self.key == "almost":
            near = ((flat.minimum(1 - flat) > 0) & (flat.minimum(1 - flat) < 0.02)).any(dim=1)
        return torch.where(near[:, None], self.first(x), self.second(x))


@pytest.mark.parametrize("key", ["off the faces", "almost"])
def test_a_face_that_is_shown_to_a_key_is_met_by_one_of_the_kinds(key: str) -> None:
    binary = (X > 0.5).float()  # as a drawing's, on the faces of the box
    model = Keyed(key).eval()
    assert routed(model, [binary]) == 0.0
    kinds = around(binary, 0.2)
    assert all(kind.shape == X.shape and kind.min() >= 0 and kind.max() <= 1 for kind in kinds)
    found = routed(model, kinds)
    assert found is not None
    assert found > 0.3


class Looking(Router):
    """Shows one network alone to whoever wants to know which weights took part."""

    def forward(self, x: Tensor) -> Tensor:
        if next(self.parameters()).requires_grad:
            first: Tensor = self.first(x)
            return first
        return super().forward(x)


def test_who_looks_whether_weights_want_gradients_is_seen() -> None:
    model = Looking(float(X.flatten(1).mean(dim=1).median())).eval().requires_grad_(False)
    found, unsteady = (routed(model, [X], steady=steady) for steady in (True, False))
    assert found == pytest.approx(0.5, abs=0.05)
    assert unsteady == 0.0
