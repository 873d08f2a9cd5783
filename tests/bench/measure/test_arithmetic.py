"""What torch is told before anything is measured, and that it is told back."""

from __future__ import annotations

import pytest
import torch

from bench.measure.arithmetic import exact


def flags() -> tuple:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        cudnn.allow_tf32,
        cudnn.benchmark,
        torch.get_num_threads(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_everything_is_as_before_however_it_ends(ends: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    try:
        with exact(threads=1):
            assert flags() == (True, True, False, False, False, 1, False)
            {"well": 1}[ends]
    except KeyError:
        assert ends == "badly"
    assert flags() == before


def test_an_evaluation_is_exact_and_leaves_no_trace(monkeypatch) -> None:
    import warnings

    import bench

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before, seen = flags(), []

    class Looks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return torch.stack([x.sum(1), -x.sum(1), 0.1 * x[:, 0]], dim=1)

    warnings.simplefilter("ignore")  # of chance: it is no trained network
    bench.evaluate(Looks(), torch.rand(12, 4), torch.arange(12) % 2, ["noise"])
    assert seen
    assert not any(seen)
    assert flags() == before
