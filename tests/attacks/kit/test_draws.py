"""SplitMix64 against its published output and against plain integers, and its statistics."""

from __future__ import annotations

import torch
from scipy import stats

from attacks.kit import draws

WORD = 1 << 64
STEP = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def reference(seed: int, draw: int, stream: int, size: int) -> list[float]:
    state = mix((mix((mix(seed % WORD) + draw) % WORD) + stream) % WORD)
    return [((mix((state + k * STEP) % WORD) >> 11) + 0.5) * 2.0**-53 for k in range(1, size + 1)]


def test_the_numbers_are_splitmix64() -> None:
    # The first outputs of the authors' generator from the state 1234567.
    first = [mix((1234567 + k * STEP) % WORD) for k in (1, 2, 3)]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for seed, draw, streams in ((0, 0, [0, 1]), (2**40 + 7, 3, [2**62, 5]), (-1, 99, [8, 0])):
        found = draws.uniform(seed, draw, torch.tensor(streams), 5)
        assert found.tolist() == [reference(seed, draw, stream, 5) for stream in streams]


def test_a_row_is_alone() -> None:
    together = draws.normal(3, 1, torch.tensor([5, 9, 5, 2]), 7)
    assert torch.equal(together[1:2], draws.normal(3, 1, torch.tensor([9]), 7))
    assert torch.equal(together[0], together[2])
    assert draws.uniform(3, 1, torch.tensor([], dtype=torch.int64), 7).shape == (0, 7)


def test_uniform_and_normal_are_what_they_say() -> None:
    streams = torch.arange(500)
    flat = draws.uniform(0, 0, streams, 40).flatten().numpy()
    assert stats.kstest(flat, "uniform").pvalue > 0.01
    assert stats.kstest(draws.normal(0, 0, streams, 40).flatten().numpy(), "norm").pvalue > 0.01


def test_neighbouring_seeds_draws_and_streams_have_nothing_in_common() -> None:
    base = draws.uniform(0, 0, torch.tensor([0]), 4000)[0]
    others = [draws.uniform(*where, 4000)[0] for where in (
        (1, 0, torch.tensor([0])), (0, 1, torch.tensor([0])), (0, 0, torch.tensor([1])),
    )]  # fmt: skip
    found = torch.corrcoef(torch.stack([base, *others])) - torch.eye(4)
    assert found.abs().max() < 0.06


def test_a_stream_for_each_sample_and_target() -> None:
    ids, target = torch.tensor([4, 4, 7]), torch.tensor([0, 2, 2])
    assert draws.sample_streams(None, target, 3) is None
    assert draws.sample_streams(ids, None, 3) is ids
    both = draws.sample_streams(ids, target, 3)
    assert both is not None
    assert both.unique().numel() == 3
    assert draws.row_streams(torch.zeros(2, 5), None).tolist() == [0, 1]
