"""The museum: each mechanism does what its paper says, and each way round has a gradient."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.base.types import DataInfo, Spec, UserError
from bench.conformance import tiny_data
from bench.plugins import registry
from bench.plugins.contracts import AttackContext, BuildContext, FitContext
from bench.plugins.recipes import Objective, Recipe
from bench.runner.worker import attacked
from bench.suspicion.average import LEAST_DRAWS, Average
from bench.training.fit import fit
from bench.training.networks import DigitsCnn
from defenses.broken import INDEX
from defenses.broken.activations.k_winners import KWinners
from defenses.broken.activations.pruning import Prune
from defenses.broken.activations.regularised import GradientRegularisation
from defenses.broken.activations.saturating import Bounded, SaturatingNetwork
from defenses.broken.base import Broken, FiniteDifferences, StraightThrough, swapped
from defenses.broken.ensembles.codes import Decoder, hadamard
from defenses.broken.ensembles.diversity import Ensemble, EnsembleDiversity, mean_entropy, spread
from defenses.broken.ensembles.mixup import Mixture
from defenses.broken.ensembles.precision import FewBits, Steps
from defenses.broken.inputs.magnet import Autoencoder, Magnet
from defenses.broken.inputs.projection import Projection, slope
from defenses.broken.inputs.resize_pad import ResizePad
from defenses.broken.inputs.squeezing import Depth, Median, Vote
from defenses.broken.inputs.thermometer import Thermometer, widened
from defenses.broken.inputs.transformation import compress, denoise, reduce_depth
from defenses.randomised_smoothing import RandomisedSmoothing, Smoothed, certified_radius
from defenses.undefended import Undefended

NAMES = sorted(set(INDEX) - {"adaptive"})
RECIPE = Recipe(epochs=25, batch_size=24, optimizer="adam", lr=5e-3)
INFO = DataInfo("images", (1, 8, 8), 10, (0.3,), (0.2,))


def built(name: str, **parameters: object) -> tuple[Broken, nn.Module]:
    torch.manual_seed(0)
    defense = registry.DEFENSES.make(Spec(name, parameters))
    assert isinstance(defense, Broken)
    network = partial(DigitsCnn(width=4, dense=8).build, INFO)
    fitted = dict.fromkeys(defense.requires(), network())
    model = defense.build(BuildContext(INFO, fitted, network)).eval()
    if isinstance(model, Mixture):  # as after a fit: something to mix in
        model.images.copy_(torch.rand(model.images.shape))
    return defense, model


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_defense_answers_and_its_way_round_has_a_gradient(name: str) -> None:
    defense, model = built(name)
    assert model(images()).shape == (4, 10)
    x = images().requires_grad_()
    logits = defense.way_round(model)(x)
    assert torch.isfinite(logits).all()
    (logits * torch.arange(10.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten(1).abs().amax(dim=1).min() > 0


@pytest.mark.parametrize(
    "name",
    ["thermometer_encoding", "input_transformation", "generative_projection"],
)
def test_what_hides_its_gradient_has_none_of_its_own(name: str) -> None:
    _, model = built(name)
    x = images().requires_grad_()
    logits = model(x)
    if logits.requires_grad:
        logits.sum().backward()
    assert x.grad is None or not x.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_way_round_answers_as_the_defense_does(name: str) -> None:
    defense, model = built(name)
    x = images(32)
    way = defense.way_round(model)
    if defense.stochastic:
        assert not torch.equal(model(x), model(x))
    elif name != "output_codes":  # there, what stands before the tanh: other numbers, same order
        assert torch.allclose(way(x), model(x), atol=1e-5)
    else:
        assert torch.allclose(model[2].words @ model[1](model[0](x)).T, way(x).T, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_defense_learns_what_it_is_trained_on(name: str) -> None:
    """A whole fit on a tiny set: finite weights, better than chance."""
    data = tiny_data()
    defense = registry.DEFENSES.make(Spec(name, {}))
    network = DigitsCnn(width=8, dense=16)
    fitted = {
        role: fit(Undefended(), network, data, RECIPE, 0, {}, registry.ATTACKS.make)
        for role in defense.requires()
    }
    if name == "ensemble_diversity":
        with pytest.raises(UserError, match="3 members need more than 3 classes"):
            fit(defense, network, data, RECIPE, 0, fitted, registry.ATTACKS.make)
        defense = registry.DEFENSES.make(Spec(name, {"members": 2}))
    model = fit(defense, network, data, RECIPE, 0, fitted, registry.ATTACKS.make)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    right = (model(data.test.x).argmax(dim=1) == data.test.y).float().mean()
    assert right > 0.6


def test_adaptive_wraps_a_broken_defense_and_no_other() -> None:
    other = registry.DEFENSES.make(Spec("adaptive", {"of": "output_codes"}))
    assert not other.stochastic
    assert registry.parameters(other)["of"] == {"name": "output_codes", "bits": 16}
    reasons = {
        "undefended": "no defense of the museum",
        "magnet": "has the gradient of its answers",
        "mixup_inference": "the average that every attack takes",
        "nonsense": "unknown defense",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=f"of: .*{reason}"):
            registry.DEFENSES.make(Spec("adaptive", {"of": name}))


def test_a_distilled_network_is_attacked_at_the_temperature_of_its_training() -> None:
    adaptive = registry.DEFENSES.make(
        Spec("adaptive", {"of": {"name": "distillation", "temperature": 100}})
    )
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.mul_(10_000)  # one class is so sure that the others are zero in float32
    x = torch.rand(5, 4, requires_grad=True)
    y = network(x).argmax(dim=1)
    found = []
    for subject in (network, adaptive.surrogate(network)):
        loss = nn.functional.cross_entropy(subject(x), y, reduction="sum")
        found.append(torch.autograd.grad(loss, x)[0].abs().sum())
    assert found[0] == 0
    assert found[1] > 0
    assert torch.equal(adaptive.surrogate(network)(x), network(x) / 100)


def test_an_ensemble_is_attacked_through_the_logits_of_its_members() -> None:
    sure, unsure = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        sure.weight.copy_(torch.tensor([[900.0, 0.0], [0.0, 0.0]]))
        unsure.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    model = Ensemble([sure, unsure])
    x = torch.rand(3, 2, requires_grad=True)
    way = EnsembleDiversity(members=2).way_round(model)
    assert torch.allclose(way(x), model(x), atol=1e-3)
    way(x)[:, 1].sum().backward()
    mean = (sure.weight + unsure.weight) / 2
    assert x.grad is not None
    assert torch.allclose(x.grad, mean[1].expand(3, 2))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("thermometer_encoding", {"levels": 1}),
        ("thermometer_encoding", {"levels": 1000}),
        ("input_transformation", {"bits": 8}),
        ("feature_squeezing", {"bits": 8}),
        ("generative_projection", {"rate": float("inf")}),
        ("activation_pruning", {"samples": float("inf")}),
        ("ensemble_diversity", {"entropy": 0.0, "diversity": 0.0}),
        ("ensemble_diversity", {"diversity": float("nan")}),
        ("mixed_precision_ensemble", {"activation_bits": 9}),
        ("output_codes", {"bits": 2048}),
        ("input_transformation", {"transformation": "quilting"}),
        ("input_transformation", {"bits": 0}),
        ("input_transformation", {"weight": 0.0}),
        ("feature_squeezing", {"bits": 0}),
        ("random_resize_pad", {"smallest": 1.0}),
        ("generative_projection", {"steps": 0}),
        ("generative_projection", {"rate": 0.0}),
        ("magnet", {"hidden": 0}),
        ("magnet", {"sigma": 0.0}),
        ("k_winners_take_all", {"share": 1.0}),
        ("activation_pruning", {"samples": 0.0}),
        ("saturating_network", {"weight": 0.0}),
        ("gradient_regularisation", {"weight": -1.0}),
        ("ensemble_diversity", {"members": 1}),
        ("ensemble_diversity", {"entropy": -1.0}),
        ("mixed_precision_ensemble", {"weight_bits": 0}),
        ("output_codes", {"bits": 12}),
        ("mixup_inference", {"share": 1.0}),
        ("mixup_inference", {"draws": 0}),
        ("randomised_smoothing", {"sigma": 0.0}),
        ("randomised_smoothing", {"draws": 0}),
    ],
)
def test_parameters_that_switch_a_defense_off_are_refused(
    name: str, parameters: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=name):
        registry.DEFENSES.make(Spec(name, parameters))


@pytest.mark.parametrize("name", NAMES)
def test_flat_inputs_and_two_classes_are_refused_with_the_reason_or_harmless(name: str) -> None:
    info = DataInfo("flat", (12,), 2, (0.5,), (0.2,))

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))

    defense = registry.DEFENSES.make(Spec(name, {}))
    context = BuildContext(info, dict.fromkeys(defense.requires(), network()), network)
    refused = {
        "feature_squeezing": "images, and 'flat' has",
        "random_resize_pad": "images, and 'flat' has",
        "generative_projection": "latent = 12 is not less than the 12 features of 'flat'",
        "ensemble_diversity": "classes to differ in",
        "mixup_inference": "of the other of two classes",
    }
    if name in refused:
        with pytest.raises(UserError, match=refused[name]):
            defense.build(context)
    else:
        assert defense.build(context).eval()(torch.rand(3, 12)).shape == (3, 2)


def test_an_image_that_is_never_smaller_is_no_resized_one() -> None:
    with pytest.raises(UserError, match="no image of 'images', 8 × 8, is ever smaller"):
        built("random_resize_pad", smallest=0.99)
    assert built("random_resize_pad", smallest=0.9)  # 7 pixels of 8 at times


def test_a_network_without_what_is_replaced_is_refused() -> None:
    with pytest.raises(ValueError, match="no ReLU layer"):
        swapped(nn.Sequential(nn.Linear(2, 2)), nn.ReLU, lambda layer: layer)
    with pytest.raises(ValueError, match="first layer"):
        widened(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)), 2)


def test_a_thermometer_rises_with_the_value() -> None:
    codes = Thermometer(4)(torch.tensor([[[[0.0, 0.3, 1.0]]]]))
    assert codes[0, :, 0].T.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    channels = Thermometer(4)(torch.rand(2, 3, 5, 5))
    assert channels.shape == (2, 12, 5, 5)


def test_few_bits_are_few_values() -> None:
    assert sorted(set(reduce_depth(torch.rand(1000), 2).tolist())) == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert len(FewBits(2)(weights).round(decimals=5).unique()) == 4


def test_compression_keeps_what_is_flat_and_loses_what_is_fine() -> None:
    flat = torch.full((1, 1, 6, 7), 0.5)
    assert torch.allclose(compress(flat), flat, atol=1e-5)
    x = images()
    once = compress(x)
    assert once.shape == x.shape
    assert 0 < (once - x).square().mean() < 0.01
    inside = x * 0.5 + 0.25  # away from the box, which would cut the second time
    assert torch.allclose(compress(compress(inside)), compress(inside), atol=1e-4)


def test_denoising_lowers_the_variation() -> None:
    def variation(x: Tensor) -> Tensor:
        return x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()

    x = images()
    assert variation(denoise(x, 0.1, 20)) < 0.8 * variation(x)
    weak = denoise(x, 1e-9, 20)
    assert torch.allclose(weak, x, atol=1e-5)


def test_denoising_descends_the_objective_by_its_true_gradient() -> None:
    x = images(1).double()
    start = x.clone().requires_grad_()
    right = nn.functional.pad(start.diff(dim=-1), (0, 1))
    down = nn.functional.pad(start.diff(dim=-2), (0, 0, 0, 1))
    loss = 0.1 * (right.square() + down.square() + 1e-4).sqrt().sum()
    (gradient,) = torch.autograd.grad(loss, start)
    assert torch.allclose(denoise(x, 0.1, 1), (x - 0.1 * gradient).clamp(0, 1), atol=1e-9)


def test_the_median_drops_a_lone_pixel() -> None:
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 3, 3] = 1
    assert not Median()(x).any()


def test_squeezed_answers_vote() -> None:
    network = nn.Flatten()
    x = torch.rand(2, 1, 2, 2)
    vote = Vote(network, nn.ModuleList([Depth(1)])).eval()
    mean = (x.flatten(1).softmax(1) + x.round().flatten(1).softmax(1)) / 2
    assert torch.allclose(vote(x), mean.log())


def test_resizing_moves_the_image_within_black() -> None:
    torch.manual_seed(0)
    layer, x = ResizePad(0.5), torch.ones(1, 1, 8, 8)
    found = [layer(x) for _ in range(20)]
    sizes = {int((image > 0.5).sum()) for image in found}
    assert len(sizes) > 2
    assert min(sizes) >= 16
    assert all(image.shape == x.shape for image in found)


def test_a_projection_draws_what_its_generator_can_and_a_row_alone_alike() -> None:
    torch.manual_seed(0)
    drawer = Autoencoder((1, 8, 8), 3)
    projection = Projection(drawer, starts=16, latent=3, steps=15, rate=0.5)
    projection.keep(torch.randn(5, 3))
    x = images(3)
    drawn = projection(x)
    start = drawer.decode(projection.codes)
    before = torch.cdist(x.flatten(1), start.flatten(1)).amin(dim=1)
    assert ((drawn - x).flatten(1).norm(dim=1) <= before + 1e-5).all()
    assert torch.allclose(projection(x[:1]), drawn[:1], atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(projection(x), drawn, atol=1e-6)


def test_k_winners_pass_and_the_others_do_not() -> None:
    x = torch.tensor([[0.1, 5.0, -1.0, 3.0]])
    assert KWinners(0.5)(x).tolist() == [[0, 5, 0, 3]]


def test_pruning_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 50)
    mean = torch.stack([Prune(1.0)(x) for _ in range(4000)]).mean(dim=0)
    assert torch.allclose(mean, x, atol=0.15)
    assert (Prune(0.1)(x) == 0).sum() > 35
    assert not Prune(1.0)(torch.zeros(1, 5)).any()


def asked_by(defense: Broken) -> Objective:
    """Return the objective that a fit of ``defense`` hands to the training."""
    asked: dict[str, Any] = {}

    def train(model: nn.Module, x: Tensor, y: Tensor, *, objective: Objective) -> None:
        asked["objective"] = objective

    data = tiny_data()
    generator = torch.Generator().manual_seed(0)
    context = FitContext(
        data.info, {}, data.validation, RECIPE, generator, train, registry.ATTACKS.make
    )
    defense.fit(nn.Identity(), data.train, context)
    objective: Objective = asked["objective"]
    return objective


def test_a_saturating_network_pays_for_units_that_are_not_flat() -> None:
    assert Bounded()(torch.tensor([-1.0, 0.25, 2.0])).tolist() == [0, 0.25, 1]
    objective = asked_by(SaturatingNetwork(weight=2.0))
    model = nn.Sequential(Bounded())  # its units see the input itself
    x, y = torch.tensor([[-3.0, 0.25], [0.9, 1.5]]), torch.tensor([0, 1])
    plain = nn.functional.cross_entropy(model(x), y)
    penalty = 2.0 * (0 + 0.25 + 0.1 + 0) / 4
    assert float(objective(model, x, y)) == pytest.approx(float(plain) + penalty)
    assert not model[0]._forward_pre_hooks  # nothing is left on the network


def test_a_magnet_draws_noisy_inputs_back() -> None:
    data = tiny_data()
    model = fit(
        Magnet(hidden=8, sigma=0.3), DigitsCnn(width=8, dense=16), data, RECIPE, 0, {},
        registry.ATTACKS.make,
    )  # fmt: skip
    assert isinstance(model, nn.Sequential)
    x = data.test.x
    noisy = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    before, after = ((found - x).square().mean() for found in (noisy, model[0](noisy)))
    assert after < 0.7 * before
    assert model[0](noisy).shape == x.shape


def test_gradient_regularisation_pays_for_the_length_of_each_rows_gradient() -> None:
    objective = asked_by(GradientRegularisation(weight=3.0))
    model = nn.Linear(2, 2)
    x, y = torch.tensor([[0.2, 0.9], [0.5, 0.1]]), torch.tensor([0, 1])
    plain = nn.functional.cross_entropy(model(x), y)
    # Of softmax regression the gradient is (p - e_y) W.
    off = model(x).softmax(dim=1) - nn.functional.one_hot(y, 2)
    penalty = 3.0 * (off @ model.weight).square().sum(dim=1).mean()
    loss = objective(model, x, y)
    assert loss.item() == pytest.approx((plain + penalty).item())
    loss.backward()  # through the gradient: the penalty teaches
    assert model.weight.grad is not None
    (alone,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model.weight)
    assert not torch.allclose(model.weight.grad, alone)


def test_straight_through_answers_one_function_with_the_slope_of_another() -> None:
    x = torch.tensor([0.2, 0.7], requires_grad=True)
    layer = StraightThrough(nn.Threshold(0.5, 0.0), lambda v: 3 * v)
    answer = layer(x)
    assert torch.allclose(answer, torch.tensor([0.0, 0.7]))
    answer.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]


def test_finite_differences_find_the_slope_of_a_staircase() -> None:
    torch.manual_seed(0)

    class Staircase(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            steps = (x.flatten(1) * 50).floor() / 50
            return steps @ torch.tensor([[1.0, -1.0], [2.0, 0.0]])

    x = torch.full((3, 2), 0.5, requires_grad=True)
    FiniteDifferences(Staircase(), draws=4000, sigma=0.1)(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.tensor([1.0, 2.0]).expand(3, 2), atol=0.15)


def test_diversity_is_largest_where_wrong_answers_are_orthogonal() -> None:
    y = torch.tensor([0])
    apart = torch.full((2, 1, 3), -30.0)
    apart[0, 0, 1] = apart[1, 0, 2] = 0.0
    same = torch.zeros(2, 1, 3)
    assert spread(apart, y) == pytest.approx(0, abs=1e-3)
    assert spread(same, y) < -5
    assert mean_entropy(same) == pytest.approx(float(torch.tensor(3.0).log()))


def test_steps_pass_gradients_only_while_they_learn() -> None:
    x = torch.tensor([0.3, 0.9], requires_grad=True)
    deployed = Steps(1).eval()(x)
    assert deployed.tolist() == [0, 1]
    (gradient,) = torch.autograd.grad(deployed.sum(), x)
    assert gradient.tolist() == [0, 0]
    for passing in (Steps(1).train(), Steps(1, deployed=False).eval()):
        answer = passing(x)
        assert answer.tolist() == [0, 1]
        (gradient,) = torch.autograd.grad(answer.sum(), x)
        assert gradient.tolist() == [1, 1]


def test_code_words_are_orthogonal_and_decode_themselves() -> None:
    words = hadamard(16)[1:11]
    assert torch.equal(words @ words.T, 16 * torch.eye(10))
    assert Decoder(words)(3 * words).argmax(dim=1).tolist() == list(range(10))
    rounded = 3 * words + 1e-6 * torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Decoder(words)(rounded), Decoder(words)(3 * words), atol=1e-3)


def test_the_slope_of_a_projection_is_that_of_the_squared_distance() -> None:
    torch.manual_seed(0)
    drawer = Autoencoder((1, 4, 4), 3)
    code, goal = torch.randn(6, 3, requires_grad=True), torch.rand(6, 16)
    distance = (drawer.decode(code).flatten(1) - goal).square().sum()
    (gradient,) = torch.autograd.grad(distance, code)
    assert torch.allclose(slope(drawer, code, goal), gradient, atol=1e-5)


def test_draws_of_a_row_side_by_side_are_draws_of_their_own() -> None:
    class Coin(nn.Module):
        """Sure of one class or the other, by a coin a row."""

        def forward(self, x: Tensor) -> Tensor:
            heads = (torch.rand(len(x)) < 0.5).float()
            return 20 * torch.stack((heads, 1 - heads), dim=1)

    torch.manual_seed(0)
    x = torch.zeros(300, 1)
    together = Average(Coin(), draws=20, by_row=True)(x).exp()
    heads = (20 * together[:, 0]).round()
    assert 9.5 < heads.mean() < 10.5  # each row has a mean of its own
    assert 3.5 < heads.var() < 6.5  # binomial: 20 / 4
    assert torch.allclose(together.sum(dim=1), torch.ones(300), atol=1e-5)


def test_a_surrogate_that_is_an_average_is_not_averaged_again() -> None:
    defense, model = built("mixup_inference")
    assert isinstance(attacked(defense, model), Average)
    assert attacked(defense, model).model is model
    other, random = built("random_resize_pad")
    assert isinstance(attacked(other, random), Average)
    few = RandomisedSmoothing(draws=1)
    assert attacked(few, Smoothed(nn.Linear(2, 2), 0.1, 1)).draws == LEAST_DRAWS


def test_mixtures_are_with_other_classes() -> None:
    torch.manual_seed(0)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = x.flatten(1).mean(dim=1, keepdim=True)
            return torch.cat([value, 1 - value], dim=1) * 10

    mixture = Mixture(Mean(), pool=4, shape=(3,), draws=64, share=0.5)
    mixture.images.copy_(torch.tensor([[0.0], [0.0], [1.0], [1.0]]).expand(4, 3))
    mixture.labels.copy_(torch.tensor([1, 1, 0, 0]))
    # Sure of class 0: only images of class 1 (zeros) are mixed in, so the mean falls to 0.5.
    answer = mixture(torch.ones(1, 3)).exp()
    assert torch.allclose(answer, torch.tensor([[0.5, 0.5]]), atol=1e-3)


def test_a_smoothed_linear_network_is_certified_at_its_true_distance() -> None:
    torch.manual_seed(0)
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    model = Smoothed(network, sigma=0.5, draws=8)
    x = torch.tensor([[0.4, 0.0], [0.0, 0.0]])
    label, radius = certified_radius(model, x, draws=20_000)
    assert label.tolist() == [0, -1]
    assert 0.37 < float(radius[0]) <= 0.4 + 1e-3  # a lower bound of the distance to the boundary
    assert float(radius[1]) == 0


def test_no_attack_breaks_what_is_certified() -> None:
    """The proof, held against PGD that goes through the noise: on a network that was fitted."""
    data = tiny_data()
    defense = RandomisedSmoothing(sigma=0.5)
    model = fit(defense, DigitsCnn(width=8, dense=16), data, RECIPE, 0, {}, registry.ATTACKS.make)
    assert isinstance(model, Smoothed)
    x, y = data.test.x, data.test.y
    torch.manual_seed(0)
    label, radius = certified_radius(model, x, draws=1000)
    certified = (label == y) & (radius > 0.3)
    assert certified.sum() > 10
    attack = registry.ATTACKS.make(Spec("pgd", {"eps": 0.3, "norm": "l2", "steps": 20}))
    found = attack.perturb(defense.surrogate(model), x, y, None, AttackContext(data.info))
    votes = torch.stack([model.network(_noisy(found.x_adv, 0.5)).argmax(1) for _ in range(500)])
    assert (votes.mode(dim=0).values == y)[certified].all()
    strong = registry.ATTACKS.make(Spec("pgd", {"eps": 20.0, "norm": "l2", "steps": 20}))
    far = strong.perturb(defense.surrogate(model), x, y, None, AttackContext(data.info)).x_adv
    assert not (model(far).argmax(dim=1) == y)[certified].all()  # it can


def _noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * torch.randn_like(x)


def test_randomised_smoothing_is_attacked_through_more_draws() -> None:
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    model = Smoothed(network, 0.1, 4)
    surrogate = RandomisedSmoothing(sigma=0.1, draws=4).surrogate(model)
    assert isinstance(surrogate, Average)
    assert surrogate.draws >= 20
    assert surrogate.model is network
    x = torch.rand(300, 2)
    assert torch.equal(surrogate(x), surrogate(x))  # it draws the same noise
    assert torch.allclose(surrogate(x)[:5], surrogate(x[:5]), atol=1e-6)
    mean = torch.stack([model(x) for _ in range(400)]).exp().mean(dim=0)
    assert torch.allclose(surrogate(x).exp(), mean, atol=0.05)


def test_an_attack_goes_through_the_way_round() -> None:
    defense = registry.DEFENSES.make(Spec("input_transformation", {"bits": 3}))
    assert isinstance(defense, Broken)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = defense.build(BuildContext(INFO, {}, lambda: network)).eval()
    attack = registry.ATTACKS.make(Spec("pgd", {"eps": 0.3, "steps": 20}))
    x = images(16)
    y = model(x).argmax(dim=1)
    plain = attack.perturb(model, x, y, None, AttackContext(INFO))
    through = attack.perturb(defense.way_round(model), x, y, None, AttackContext(INFO))
    fooled = [(model(found.x_adv).argmax(dim=1) != y).sum() for found in (plain, through)]
    assert fooled[1] > fooled[0]
