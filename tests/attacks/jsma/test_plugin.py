"""JSMA on the same weights at another precision and temperature: the plugin's views."""

import pytest
import torch
from torch import nn

from attacks.jsma.attack import jsma
from attacks.jsma.plugin import Jsma
from bench.base.types import DataInfo
from bench.plugins.contracts import AttackContext

INFO = DataInfo("linear", (12,), 3, (0.0,), (1.0,))
CONTEXT = AttackContext(INFO)


def network(scale: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        model[2].weight.mul_(scale)
        model[2].bias.mul_(scale)
    return model.eval()


def attempts(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.rand(20, 12, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    return x, y, (y + 1) % 3


def test_float32_loses_what_float64_sees() -> None:
    model = network(2000.0)
    x, y, target = attempts(model)
    single, double, log_odds = (
        Jsma(max_features=8, **more).perturb(model, x, y, target, CONTEXT)
        for more in (
            {"output": "probs"},
            {"output": "probs", "precision": "float64"},
            {"output": "log_odds"},
        )
    )
    assert single.zero_gradients is not None
    assert double.zero_gradients is not None
    assert single.stop_reason is not None
    lost = single.zero_gradients > 0
    assert lost.sum() > double.zero_gradients.sum()
    # A zero gradient ends the attack for want of an admissible pair, and only once.
    assert single.zero_gradients.max() == 1
    reasons = [single.stop_reason[row] for row in lost.nonzero().squeeze(1)]
    assert set(reasons) == {"no_admissible_pair"}
    seen = double.zero_gradients == 0
    assert torch.equal(double.x_adv[seen], log_odds.x_adv[seen])  # the same attack, exactly
    assert double.x_adv.dtype == torch.float32


def test_a_temperature_divides_the_logits_and_nothing_else() -> None:
    model = network(50.0)
    x, y, target = attempts(model)
    warm = Jsma(max_features=8, output="probs", temperature=50.0)
    found = warm.perturb(model, x, y, target, CONTEXT)
    cool = jsma(lambda z: model(z) / 50.0, x, target, max_features=8, output="probs")
    assert torch.equal(found.x_adv, cool.x_adv)
    with pytest.raises(ValueError, match="temperature must be positive"):
        Jsma(temperature=-1.0)
