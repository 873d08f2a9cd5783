"""JSMA equals its brute-force reference, keeps its promises, and refuses bad input."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.jsma import reference
from attacks.jsma.attack import JSMAResult, StopReason, jsma
from attacks.jsma.saliency import target_weights

GAMMA = 0.25
STEPS = 8  # floor(0.25 * 64 / 2)


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 64) float64 in [0, 1], and labels."""
    data = load_digits()
    return torch.from_numpy(data.data) / 16, torch.from_numpy(data.target).long()


@pytest.fixture(scope="session")
def network() -> nn.Sequential:
    """A small ReLU network trained on digits, float64."""
    torch.manual_seed(0)
    x, y = digits()
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[:1400]), y[:1400]).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    assert (net(x[1400:]).argmax(1) == y[1400:]).double().mean() > 0.85
    return net.eval()


def attempts(images: int, start: int = 1400) -> tuple[Tensor, Tensor]:
    """Every image with each of the nine other classes: (9 * images, 64), (9 * images,)."""
    x, y = digits()
    x, y = x[start : start + images], y[start : start + images]
    targets = torch.stack([torch.tensor([t for t in range(10) if t != int(k)]) for k in y])
    return x.repeat_interleave(9, 0), targets.flatten()


class Recorder:
    """A model that keeps the inputs of the attack's own passes (the probes run without grad)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.model(x)


def assert_same_trajectories(
    network: nn.Module, x: Tensor, target: Tensor, theta: float, **mode: Any
) -> JSMAResult:
    """Every input that the attack visits is the reference's, and so is the stop reason."""
    recorder = Recorder(network)
    result = jsma(recorder, x, target, theta=theta, chunk=1, **mode)
    visited = iter(recorder.seen)
    mode.pop("gamma")
    for row in range(len(x)):
        steps = 2 * STEPS if mode.get("saliency") == "single" else STEPS
        expected = reference.attack(
            network, x[row], int(target[row]), theta=theta, steps=steps, **mode
        )
        for step, point in enumerate(expected.path):
            torch.testing.assert_close(
                next(visited)[0], point, rtol=0, atol=1e-12, msg=f"row {row}, step {step}"
            )
        assert StopReason(int(result.stop_reason[row])).name == expected.reason
        assert result.iterations[row] == len(expected.path) - 1
        torch.testing.assert_close(result.x_adv[row], expected.path[-1], rtol=0, atol=1e-12)
        assert result.features_changed[row] == (expected.path[-1] != x[row]).sum()
    assert next(visited, None) is None
    assert result.success.equal(result.stop_reason == StopReason.reached)
    return result


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.3])
@pytest.mark.parametrize("output", ["probs", "logits", "log_odds"])
def test_trajectories_equal_the_reference(network: nn.Module, output: str, theta: float) -> None:
    x, target = attempts(6)
    result = assert_same_trajectories(network, x, target, theta, output=output, gamma=GAMMA)
    assert result.success.any()
    assert result.iterations.max() > 2


@pytest.mark.parametrize("theta", [1.0, -0.5])
@pytest.mark.parametrize(
    "mode",
    [
        {"saliency": "single", "output": "logits"},
        {"saliency": "single", "output": "log_odds"},
        {"saliency": "target_gradient", "output": "logits"},
        {"saliency": "weighted", "output": "logits"},
        {"saliency": "taylor", "output": "logits"},
        {"saliency": "papernot", "output": "logits", "both": True},
        {"saliency": "papernot", "output": "log_odds", "both": True},
        {"saliency": "taylor", "output": "logits", "both": True},
    ],
    ids=lambda mode: "-".join(str(v) for v in mode.values()),
)
def test_variants_equal_the_reference(
    network: nn.Module, mode: dict[str, Any], theta: float
) -> None:
    x, target = attempts(2, 1420)
    result = assert_same_trajectories(network, x, target, theta, gamma=GAMMA, **mode)
    assert result.iterations.max() > 1


@pytest.mark.parametrize("output", ["probs", "logits", "log_odds"])
@pytest.mark.parametrize("both", [True, False])
def test_maximal_leaves_the_label_as_the_reference_does(
    network: nn.Module, output: str, both: bool
) -> None:
    x, y = digits()
    result = assert_same_trajectories(
        network,
        x[1400:1410],
        y[1400:1410],
        1.0,
        output=output,
        saliency="maximal",
        both=both,
        gamma=GAMMA,
    )
    left = network(result.x_adv).argmax(1) != y[1400:1410]
    assert result.success.equal(left)
    assert result.success.any()


def high_precision_path(
    network: nn.Sequential, factor: int, x: Tensor, target: int
) -> tuple[list[Tensor], bool]:
    """JSMA-F with the rows of the softmax Jacobian summed, in as many digits as it needs."""
    first, _, last = network
    with torch.no_grad():
        z = network(x[None])[0] * factor
    # alpha is a difference of numbers near 1 that is about exp(-gap): 0.43 digits a unit.
    with mpmath.workdps(60 + int(z.max() - z.min())):
        w1, b1 = mpmath.matrix(first.weight.tolist()), mpmath.matrix(first.bias.tolist())
        w2, b2 = mpmath.matrix(last.weight.tolist()), mpmath.matrix(last.bias.tolist())
        path, point, allowed = [x.clone()], x.clone(), x < 1
        while True:
            hidden = w1 * mpmath.matrix(point.tolist()) + b1
            on = [i for i in range(len(hidden)) if hidden[i] > 0]
            scores = [
                factor * (mpmath.fsum(w2[k, i] * hidden[i] for i in on) + b2[k]) for k in range(10)
            ]
            reached = all(scores[target] > scores[k] for k in range(10) if k != target)
            if reached or len(path) > STEPS:
                return path, reached
            slope = [
                [factor * mpmath.fsum(w2[k, i] * w1[i, j] for i in on) for j in range(64)]
                for k in range(10)
            ]
            pair = _exact_pair(scores, slope, target, allowed)
            assert pair is not None
            for i in pair:
                point[i], allowed[i] = 1.0, False
            path.append(point.clone())


def _exact_pair(
    scores: list[Any], slope: list[list[Any]], target: int, allowed: Tensor
) -> tuple[int, int] | None:
    total = mpmath.fsum(mpmath.exp(s) for s in scores)
    probs = [mpmath.exp(s) / total for s in scores]
    mean = [mpmath.fsum(probs[k] * slope[k][j] for k in range(10)) for j in range(64)]
    rows = [[probs[k] * (slope[k][j] - mean[j]) for j in range(64)] for k in range(10)]
    alpha = rows[target]
    beta = [mpmath.fsum(rows[k][j] for k in range(10) if k != target) for j in range(64)]
    best, pair = mpmath.mpf(0), None
    free = [j for j in range(64) if allowed[j]]
    for n, p in enumerate(free):
        for q in free[n + 1 :]:
            a, b = alpha[p] + alpha[q], beta[p] + beta[q]
            if a > 0 > b and -a * b > best:
                best, pair = -a * b, (p, q)
    return pair


class Scaled(nn.Module):
    """Logits times a factor, as training at that temperature and deploying at 1 makes them."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.factor


@pytest.mark.parametrize("factor", [20, 100])
def test_float32_log_odds_is_jsma_f_in_high_precision(network: nn.Sequential, factor: int) -> None:
    single = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    single.load_state_dict(network.state_dict())
    x, target = attempts(1, 1403)
    model = Scaled(single, factor)
    underflow = 0
    for row in (0, 3, 6):
        recorder = Recorder(model)
        mine = jsma(recorder, x[row, None].float(), target[row, None], gamma=GAMMA)
        path, reached = high_precision_path(network, factor, x[row], int(target[row]))
        assert torch.stack(recorder.seen)[:, 0].double().equal(torch.stack(path))
        assert bool(mine.success[0]) == reached
        probs = jsma(model, x[row, None].float(), target[row, None], gamma=GAMMA, output="probs")
        underflow += int(probs.stop_reason[0] == StopReason.no_admissible_pair)
    if factor == 100:
        assert underflow, "float32 probabilities would do here: the test needs larger logits"


def linear(weights: list[list[float]], bias: list[float]) -> nn.Linear:
    model = nn.Linear(len(weights[0]), len(weights)).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weights))
        model.bias.copy_(torch.tensor(bias))
    return model


@pytest.mark.parametrize("output", ["probs", "logits", "log_odds"])
@pytest.mark.parametrize(("deficit", "steps"), [(0.5, 1), (10.9, 1), (11.0, 2), (17.9, 2), (18, 3)])
def test_closed_form_on_a_linear_model(output: str, deficit: float, steps: int) -> None:
    """Two classes, opposite weights: pairs in the order of the weights until the margin turns."""
    weights = [3.0, -1.0, 6.0, 1.0, 4.0, 5.0]  # pairs gain 11, then 7, then 0
    half = [w / 2 for w in weights]
    model = linear([half, [-w for w in half]], [-deficit, 0.0])
    result = jsma(model, torch.zeros(1, 6).double(), torch.tensor([0]), gamma=1.0, output=output)
    changed = [{2, 5}, {2, 5, 4, 0}][min(steps, 2) - 1]
    assert set(result.x_adv[0].nonzero().flatten().tolist()) == changed
    # After two pairs the best that is left is 1 - 1 = 0: not admissible.
    assert bool(result.success[0]) == (steps < 3)
    assert result.iterations[0] == min(steps, 2)
    if steps == 3:
        assert result.stop_reason[0] == StopReason.no_admissible_pair


def test_taylor_prefers_the_feature_with_room() -> None:
    model = linear([[4.0, 3.0, 3.0], [-4.0, -3.0, -3.0]], [-50.0, 50.0])
    x = torch.tensor([[0.9, 0.0, 0.0]], dtype=torch.float64)
    mode: dict[str, Any] = {"max_features": 2, "output": "logits"}
    weighted = jsma(model, x, torch.tensor([0]), saliency="weighted", **mode).x_adv
    taylor = jsma(model, x, torch.tensor([0]), saliency="taylor", **mode).x_adv
    assert weighted.tolist() == [[1.0, 1.0, 0.0]]
    assert taylor.tolist() == [[0.9, 1.0, 1.0]]


def test_domain_empty_and_budget_are_told_apart() -> None:
    model = linear([[1.0] * 4, [-1.0] * 4], [-50.0, 0.0])
    x, target = torch.zeros(1, 4).double(), torch.tensor([0])
    assert jsma(model, x, target, gamma=0.5).stop_reason[0] == StopReason.budget
    x[0, :3] = 1
    assert jsma(model, x, target, gamma=0.5).stop_reason[0] == StopReason.domain_empty


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    gamma=st.floats(0.2, 1.0),
    theta=st.sampled_from([1.0, -1.0, 0.3, -0.3, 0.05]),
    saliency=st.sampled_from(["papernot", "single", "target_gradient", "maximal"]),
    output=st.sampled_from(["probs", "logits", "log_odds"]),
    both=st.booleans(),
    pixels=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_budget_and_box_hold_and_success_is_real(  # noqa: PLR0917 - hypothesis draws them
    seed: int,
    gamma: float,
    theta: float,
    saliency: str,
    output: str,
    both: bool,
    pixels: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    # Sixteenths: some entries start at each bound.
    x = (torch.rand(5, 2, 3, 4) * 1.4 - 0.2).clamp(0, 1).mul(16).round().div(16).to(dtype)
    target = torch.randint(0, 4, (5,))
    before = x.clone()
    result = jsma(
        model,
        x,
        target,
        gamma=gamma,
        theta=theta,
        saliency=saliency,
        output=output,
        both=both,
        pixels=pixels,
        chunk=2,
    )
    size, per_step = (12 if pixels else 24), (1 if saliency == "single" else 2)
    assert x.equal(before)
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == dtype
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert (result.features_changed <= gamma * size + 1e-6).all()
    assert (result.iterations <= int(gamma * size / per_step + 1e-9)).all()
    moved = result.x_adv - x
    assert (moved.abs().flatten(1).amax(1) <= abs(theta) * result.iterations + 1e-6).all()
    if not both:
        assert (moved * theta >= 0).all()
    changed = (moved != 0).any(dim=1) if pixels else moved != 0
    assert changed.flatten(1).sum(1).equal(result.features_changed)
    margin = _margin(model, result.x_adv, target)
    assert result.success.equal(margin < 0 if saliency == "maximal" else margin > 0)
    started = _margin(model, x, target)
    done = started < 0 if saliency == "maximal" else started > 0
    assert result.x_adv[done].equal(x[done])
    assert (result.iterations[done] == 0).all()


def _margin(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    # One row at a time: rounding depends on the batch, and margins of 0 are not at stake here.
    logits = torch.cat([model(row[None]) for row in x]).detach()
    own = logits.gather(1, target[:, None]).squeeze(1)
    return own - logits.scatter(1, target[:, None], -torch.inf).amax(1)


def test_pixels_change_all_channels_together() -> None:
    torch.manual_seed(1)
    weights = torch.randn(2, 16).double()
    x = torch.rand(4, 1, 4, 4).double() * 0.5

    def grey(image: Tensor) -> Tensor:
        return image.mean(1).flatten(1) @ weights.T - torch.tensor([8.0, 0.0])

    target = torch.zeros(4, dtype=torch.int64)
    colour = jsma(grey, x.repeat(1, 3, 1, 1), target, max_features=6, pixels=True)
    single = jsma(grey, x, target, max_features=6)
    assert (single.features_changed == 6).all()
    assert colour.x_adv.equal(single.x_adv.repeat(1, 3, 1, 1))
    assert colour.features_changed.equal(single.features_changed)


def test_pixels_sum_only_the_channels_that_can_move() -> None:
    # Pixel 0 has the largest sum, but the channel that makes it so is at the bound.
    weights = torch.tensor([[9.0, 2, 3], [0.0, 2, 1]]).flatten().double()
    x = torch.zeros(1, 2, 1, 3).double()
    x[0, 0, 0, 0] = 1

    def model(image: Tensor) -> Tensor:
        score = image.flatten(1) @ weights
        return torch.stack((score - 100, -score), 1)

    result = jsma(model, x, torch.tensor([0]), max_features=2, pixels=True)
    assert result.x_adv.tolist() == [[[[1.0, 1, 1]], [[0.0, 1, 1]]]]
    assert result.features_changed[0] == 2


@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize("output", ["logits", "log_odds"])
def test_results_do_not_depend_on_chunk(network: nn.Module, chunk: int, output: str) -> None:
    x, target = attempts(6)
    whole = jsma(network, x, target, gamma=GAMMA, output=output)
    parts = jsma(network, x, target, gamma=GAMMA, output=output, chunk=chunk)
    _assert_equal(whole, parts)


def test_chunk_bounds_the_rows_at_once(network: nn.Module) -> None:
    recorder = Recorder(network)
    x, target = attempts(6)
    jsma(recorder, x, target, gamma=GAMMA, chunk=10)
    sizes = [len(seen) for seen in recorder.seen]
    assert max(sizes) == 10
    # Waiting rows fill the places of those that are done: only the tail runs below the bound.
    assert sizes == sorted(sizes, reverse=True)


def test_order_of_rows_is_irrelevant(network: nn.Module) -> None:
    x, target = attempts(6)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    result = jsma(network, x, target, gamma=GAMMA, output="logits")
    mixed = jsma(network, x[order], target[order], gamma=GAMMA, output="logits", chunk=11)
    picked = JSMAResult(*(getattr(result, f)[order] for f in result.__dataclass_fields__))
    _assert_equal(picked, mixed)


def _assert_equal(a: JSMAResult, b: JSMAResult) -> None:
    for field in a.__dataclass_fields__:
        assert getattr(a, field).equal(getattr(b, field)), field


def test_any_shape(network: nn.Module) -> None:
    x, target = attempts(1)
    square = nn.Sequential(nn.Flatten(), network)
    flat = jsma(network, x, target, gamma=GAMMA)
    for shape in [(1, 8, 8), (2, 2, 16), (8, 8), (4, 2, 2, 4)]:
        shaped = jsma(square, x.reshape(-1, *shape), target, gamma=GAMMA)
        assert shaped.x_adv.flatten(1).equal(flat.x_adv)


def test_a_model_that_views_its_input_gets_it_contiguous() -> None:
    torch.manual_seed(0)
    weights = torch.randn(3, 48)
    x = torch.rand(2, 3, 4, 4)
    target = torch.tensor([0, 1])
    viewed = jsma(lambda image: image.view(-1, 48) @ weights.T, x, target, gamma=0.5)
    flattened = jsma(lambda image: image.flatten(1) @ weights.T, x, target, gamma=0.5)
    _assert_equal(viewed, flattened)


def test_empty_batch(network: nn.Module) -> None:
    result = jsma(network, torch.zeros(0, 64).double(), torch.zeros(0).long(), gamma=GAMMA)
    assert result.x_adv.shape == (0, 64)
    assert result.success.shape == (0,)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model[0].bias.requires_grad_(False)
    model[2].eval()
    (model(torch.rand(4, 8)).sum() * 2).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    x, target = torch.rand(6, 8), torch.randint(0, 3, (6,))

    def unchanged() -> None:
        assert [p.requires_grad for p in model.parameters()] == flags
        assert [m.training for m in model.modules()] == modes
        for p, grad in zip(model.parameters(), grads, strict=True):
            assert (p.grad is None) == (grad is None)
            assert grad is None or p.grad.equal(grad)
        assert all(value.equal(state[name]) for name, value in model.state_dict().items())

    with torch.no_grad():
        first = jsma(model, x, target, gamma=0.5)
    unchanged()
    with torch.inference_mode():
        second = jsma(model, x, target, gamma=0.5)
    _assert_equal(first, second)  # dropout is off, or these would differ
    assert not first.x_adv.requires_grad
    with pytest.raises(ValueError, match="target must be in"):
        jsma(model, x, target + 3, gamma=0.5)
    unchanged()


@pytest.mark.parametrize("output", ["probs", "logits", "log_odds"])
@pytest.mark.parametrize("saliency", ["papernot", "single", "target_gradient", "maximal"])
@pytest.mark.parametrize("kind", ["nan-gradient", "nan-logits", "zero-gradient", "tied-logits"])
def test_no_direction_is_a_failure_not_a_success(kind: str, saliency: str, output: str) -> None:
    def model(x: Tensor) -> Tensor:
        base = torch.stack((x.sum(1), -x.sum(1), x[:, 0]), 1)
        if kind == "nan-logits":
            return base * torch.nan
        if kind == "tied-logits":
            return base * 0 + 1
        constant = torch.tensor([0.0, 1.0, 2.0]) if saliency != "maximal" else -torch.arange(3.0)
        return constant + (base * 0 if kind == "zero-gradient" else _NanGradient.apply(base))

    result = jsma(
        model,
        torch.full((2, 4), 0.5),
        torch.tensor([0, 0]),
        gamma=1.0,
        output=output,
        saliency=saliency,
    )
    assert not result.success.any()
    assert (result.stop_reason == StopReason.no_admissible_pair).all()
    assert (result.features_changed == 0).all()


@pytest.mark.parametrize("output", ["logits", "log_odds"])
@pytest.mark.parametrize("saliency", ["papernot", "single"])
def test_a_feature_without_a_gradient_is_left_out(output: str, saliency: str) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def model(x: Tensor) -> Tensor:
        score = torch.cat((x[:, :3], _NanGradient.apply(x[:, 3:])), 1) @ weights
        return torch.stack((score - 100, -score), 1)

    mode: dict[str, Any] = {"output": output, "saliency": saliency}
    result = jsma(model, torch.zeros(1, 4), torch.tensor([0]), gamma=0.5, **mode)
    assert result.x_adv.tolist() == [[0, 1, 1, 0]]


def test_log_odds_do_not_cancel_where_the_target_is_certain() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    weights = target_weights(logits, torch.tensor([0]), "log_odds")
    assert weights.tolist() == [[1.0, -0.5, -0.5]]


@pytest.mark.parametrize("theta", [0.4, -0.4])
@pytest.mark.parametrize("pixels", [True, False])
def test_no_feature_moves_both_ways(theta: float, pixels: bool) -> None:
    torch.manual_seed(2)
    weights = torch.randn(2, 16) * 3

    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(9 * x).flatten(1) @ weights.T - torch.tensor([1e3, 0.0])

    recorder = Recorder(Waves())
    x, target = torch.rand(8, 2, 2, 4), torch.zeros(8, dtype=torch.int64)
    result = jsma(recorder, x, target, gamma=1.0, theta=theta, both=True, pixels=pixels, chunk=1)
    path = torch.cat(recorder.seen).split((result.iterations + 1).tolist())
    moves = [p.diff(dim=0) for p in path]
    assert any((m > 0).any() and (m < 0).any() for m in moves), "both directions must occur"
    for m in moves:
        assert not ((m > 0).any(0) & (m < 0).any(0)).any()


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.nan


X = torch.full((2, 4), 0.5)
T = torch.tensor([0, 1])
NET = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": 0.0}, ValueError, r"theta must be non-zero and in \[-1, 1\], got 0.0"),
        ({"theta": -1.5}, ValueError, r"theta must be non-zero and in \[-1, 1\], got -1.5"),
        ({"theta": float("nan")}, ValueError, r"theta must be .* got nan"),
        ({"theta": 4.0, "clip": (-1, 2)}, ValueError, r"theta must be .* in \[-3, 3\], got 4.0"),
        ({"gamma": 0.0}, ValueError, r"gamma must be in \(0, 1\], got 0.0"),
        ({"gamma": 1.1}, ValueError, r"gamma must be in \(0, 1\], got 1.1"),
        ({"gamma": 0.3}, ValueError, "gamma must allow at least 2 of 4 features, got 0.3"),
        ({"gamma": None}, ValueError, "exactly one of gamma and max_features, got neither"),
        ({"max_features": 2}, ValueError, "exactly one .* got gamma=0.5 and max_features=2"),
        ({"gamma": None, "max_features": 1}, ValueError, "max_features must be at least 2, got 1"),
        (
            {"gamma": None, "max_features": 0, "saliency": "single"},
            ValueError,
            "max_features must be at least 1, got 0",
        ),
        (
            {"output": "prob"},
            ValueError,
            "output must be one of log_odds, probs, logits, got 'prob'; did you mean 'probs'",
        ),
        ({"saliency": "x"}, ValueError, "saliency must be one of papernot, single, .* got 'x'"),
        ({"saliency": "weighted"}, ValueError, "output must be 'logits', got 'log_odds'"),
        ({"saliency": "taylor", "output": "probs"}, ValueError, "must be 'logits', got 'probs'"),
        (
            {"pixels": True},
            ValueError,
            r"pixels=True needs .*\(batch, C, H, W\), got \(.batch., 4\)",
        ),
        ({"clip": (1.0, 0.0)}, ValueError, r"clip must be .* low < high, got \(1.0, 0.0\)"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
        ({"target": torch.tensor([0, 3])}, ValueError, r"target must be in \[0, 2\], .*\[0, 3\]"),
        ({"target": torch.tensor([-1, 0])}, ValueError, r"target must be in \[0, 2\], .*\[-1, 0\]"),
        ({"target": torch.tensor([0])}, ValueError, r"target must have shape \(2,\)"),
        ({"target": torch.tensor([[0], [1]])}, ValueError, r"target must have shape \(2,\)"),
        ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target must be integers"),
        ({"target": torch.tensor([True, False])}, TypeError, "target must be integers"),
        ({"x": X.clone().fill_(torch.nan)}, ValueError, r"x must lie in \[0, 1\], without NaN"),
        ({"x": X + 1}, ValueError, r"x must lie in \[0, 1\], .*got values in \[1.5, 1.5\]"),
        ({"x": X.long()}, TypeError, "x must be floating-point, got torch.int64"),
        ({"x": X[:, 0]}, ValueError, r"x must have shape \(batch, \*shape\)"),
        ({"model": lambda x: x[:, 0]}, ValueError, r"model must return .* got \(1,\)"),
        ({"model": lambda x: x[:, :1]}, ValueError, "at least 2 classes"),
        ({"model": lambda x: x[:0]}, ValueError, r"model must return .* got \(0, 4\)"),
        ({"model": lambda x: [x]}, TypeError, "model must return a tensor of logits, got list"),
        ({"model": lambda x: x.long()}, TypeError, "floating-point logits, got torch.int64"),
    ],
)
def test_bad_input_has_its_message(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    call: dict[str, Any] = {"model": NET, "x": X, "target": T, "gamma": 0.5} | change
    with pytest.raises(error, match=message):
        jsma(call.pop("model"), call.pop("x"), call.pop("target"), **call)
