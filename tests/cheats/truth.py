"""The truth: what is left of each cheat under attacks written for it, as a table.

``python tests/cheats/truth.py --seeds 0,1,2`` from the repository's root writes ``README.md``
beside this file. L∞: PGD on the margin, 100 steps, 10 restarts, on the network that answers (3 on
the grid of the images, on the pair with its twin, on what was written for one cheat); L0 of two
features: all 8,064 pairs at the corners. What these find is put to a fresh copy of the cheat, one
row at a time, without anything that it could know a judge by: a source survives where its label
wins strictly, with finite logits, on every candidate.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from bench.base.types import Spec  # noqa: E402 (found by the line above)
from bench.plugins import discovery, registry  # noqa: E402
from bench.plugins.contracts import Defense  # noqa: E402
from bench.plugins.data import Dataset  # noqa: E402
from bench.plugins.recipes import find_recipe  # noqa: E402
from bench.training.fit import derive_seed, fit  # noqa: E402
from defenses.canaries import Averaged, Noise  # noqa: E402

FAMILIES = (
    "silence", "memory", "suspicion", "gradients", "scale", "batch", "chance", "inside",
    "reference", "field", "blind", "routed",
)  # fmt: skip
EPS, FEATURES, DRAWS = 0.2, 2, 21
CASES: list[tuple[str, dict[str, Any]]] = [
    ("undefended", {}),
    *[("cheat_silent_unsure", {"form": form}) for form in ("tie", "nan")],
    *[("cheat_silent_off_data", {"form": form}) for form in ("nan", "constant")],
    *[("cheat_silent_off_grid", {"form": form}) for form in ("nan", "constant")],
    *[(f"cheat_{name}", {}) for name in
      ("first_batch", "all_seen", "shared_memory", "disk_memory", "tired_gradient", "drift")],
    *[("cheat_alternating", {"by": by}) for by in ("call", "clock")],
    *[("cheat_two_faced", {"sign": sign}) for sign in
      ("batch", "gradient", "stack", "environment", "deterministic", "process", "main_process",
       "threads", "no_grad", "early")],
    *[(f"cheat_{name}", {}) for name in ("reads_labels", "reads_memory", "knows_test_set")],
    *[("cheat_decoy_gradient", params) for params in
      ({}, {"of": "untrained"}, {"where": "off_grid"})],
    *[("cheat_rippled_input", params) for params in ({}, {"slope": 200.0}, {"waves": 3})],
    ("cheat_rippled_logits", {}),
    *[("cheat_altered_gradient", {"way": way}) for way in
      ("underflow", "nan", "top_zero", "noise", "shuffle", "sign", "constant", "smallest_only")],
    *[(f"cheat_{name}", {}) for name in ("masked_on_grid", "turned_off_grid", "root_square")],
    *[("cheat_stairs", {"gradient": gradient}) for gradient in ("helpful", "steep")],
    *[(f"cheat_{name}", {}) for name in ("k_winners", "thermometer")],
    *[("cheat_scale", {"factor": factor}) for factor in (0.02, 1000.0)],
    ("cheat_temperature_by_input", {}),
    *[("cheat_shaped_logits", {"shape": shape}) for shape in
      ("softmax", "log_softmax_softmax", "round", "round_through", "one_hot", "tanh", "rank",
       "shift")],
    *[("cheat_dither", {"by": by}) for by in ("batch", "row", "place")],
    *[(f"cheat_{name}", {}) for name in ("batch_statistics", "vote", "trivial_surrogate")],
    *[("cheat_undeclared_noise", {"share": share}) for share in (1.0, 0.05)],
    ("cheat_random_resize", {}),
    *[("cheat_bad_surrogate", {"of": of}) for of in ("twin", "zero")],
    ("cheat_random_network", {}),
    *[(f"cheat_{name}", {}) for name in
      ("autoencoder", "purified", "median", "near_data", "nearest")],
    *[("cheat_other_network", {"network": network}) for network in ("linear", "mlp")],
    *[("cheat_over", {"hides": hides, "inside": inside}) for inside in ("robust", "smoothed")
      for hides in ("ripple", "waves", "decoy", "stairs", "shuffle", "zero", "winners")],
    *[("cheat_field", {"sign": sign}) for sign in
      ("crowd", "size", "thread", "command", "modules", "eval_again", "steps", "view", "instances",
       "needle_3", "needle_10", "tired", "levels")],
    ("cheat_blind_score", {}),
    *[("cheat_routed", {"by": by}) for by in ("components", "nearest")],
]  # fmt: skip
REMEMBERS = ("memory", "suspicion", "batch", "field")
"""Families whose members may keep something from one query to the next."""
STOCHASTIC = ("dither", "noise", "surrogate", "resize", "random_network")
"""Parts of the names of those whose answer is the majority of ``DRAWS`` draws."""


class Fits:
    """Fitted models of one training seed, as a run would make them."""

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed = data, seed
        self.network = registry.NETWORKS.make(Spec("digits-cnn", {}))
        self.models: dict[Defense, nn.Module] = {}

    def __call__(self, defense: Defense, name: str) -> nn.Module:
        if defense not in self.models:
            fitted = {
                key: self(needed, _registered(needed))
                for key, needed in defense.requires().items()
                if isinstance(needed, Defense)
            }
            recipe, seed = find_recipe("digits"), derive_seed(self.seed, name)
            make: Callable[[Spec], Any] = registry.ATTACKS.make
            model = fit(defense, self.network, self.data, recipe, seed, fitted, make)
            self.models[defense] = model.requires_grad_(False)
        return self.models[defense]


def _registered(defense: Defense) -> str:
    names = [
        name for name in registry.DEFENSES.names() if registry.DEFENSES.get(name) is type(defense)
    ]
    return names[0]


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the label's lead over the best other class, (n,)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.amax(dim=1)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float = EPS, restarts: int = 10,
    steps: int = 100,
) -> Tensor:  # fmt: skip
    """Return (restarts, n, *shape): where the margin was least in each restart."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    found = []
    for _ in range(restarts):
        now = low + (high - low) * torch.rand_like(x)
        best, best_at = torch.full((len(x),), torch.inf), now.clone()
        for step in range(steps + 1):
            now = now.detach().requires_grad_()
            lead = margin(model(now), y)
            better = lead.detach() < best
            best = torch.where(better, lead.detach(), best)
            best_at[better] = now.detach()[better]
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(lead.sum(), now)
            size = eps / 4 * (1 - step / steps) + eps / 50
            now = torch.clamp(now.detach() - size * gradient.nan_to_num().sign(), low, high)
        found.append(best_at)
    return torch.stack(found)


@torch.no_grad()
def pairs(model: nn.Module, x: Tensor, y: Tensor, keep: int = 10) -> Tensor:
    """Return (keep, n, *shape): the pairs of features at the corners with the least margin."""
    features = x[0].numel()
    first, second = torch.tensor(list(itertools.combinations(range(features), 2))).T
    corners = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    found = []
    for row, label in zip(x, y, strict=True):
        tried = row.flatten().repeat(len(corners), len(first), 1)
        rows = torch.arange(len(first))
        for block, (a, b) in zip(tried, corners, strict=True):
            block[rows, first], block[rows, second] = a, b
        flat = tried.view(-1, *x.shape[1:])
        lead = margin(model(flat), label.expand(len(flat)))
        least = lead.nan_to_num(-1e9).topk(keep, largest=False).indices
        found.append(flat[least])
    return torch.stack(found, dim=1)


@contextmanager
def deployed(model: nn.Module) -> Iterator[None]:
    """Be nobody's judge: another name for the process, two threads, gradients off (or on)."""
    process, threads = multiprocessing.current_process(), torch.get_num_threads()
    name, sign = process.name, getattr(model, "sign", None)
    try:
        if sign == "main_process":
            process.name = "deployed"
        if sign == "threads":
            torch.set_num_threads(2)
        with torch.set_grad_enabled(sign == "no_grad"):
            yield
    finally:
        process.name = name
        torch.set_num_threads(threads)


def survives(
    model: nn.Module, candidates: Tensor, y: Tensor, *, draws: int, fresh: bool = True
) -> Tensor:
    """Return (n,) bool: whether ``model`` is right on every candidate (k, n, *shape) of a row.

    ``fresh``: a copy of its own for each, for those who remember.
    """
    right = torch.ones(len(y), dtype=torch.bool)
    with deployed(model):
        for index, label in enumerate(y.tolist()):
            for candidate in candidates[:, index].clone():
                if fresh:
                    forget()
                asked = copy.deepcopy(model) if fresh else model
                if getattr(asked, "sign", None) == "early":
                    asked.asked = 10**6  # type: ignore[assignment]
                plugin("field").leave_alone(asked)
                answers = [asked(candidate[None])[0] for _ in range(draws)]
                won = [_wins(answer, label) for answer in answers]
                if 2 * sum(won) <= draws:
                    right[index] = False
                    break
    return right


def _wins(answer: Tensor, label: int) -> bool:
    lead = margin(answer.detach()[None], torch.tensor([label]))
    return bool(answer.isfinite().all()) and float(lead) > 0


def forget() -> None:
    """Forget what outlives a model."""
    plugin("memory").forget()


def plugin(family: str) -> Any:
    """Return the module of a family."""
    return discovery.import_plugin(str(HERE / f"{family}.py"))


def subjects(name: str, defense: Any, model: nn.Module) -> tuple[list[nn.Module], bool]:
    """Return what attacks on ``model`` differentiate beside the pool, and whether L0 asks it."""
    special = plugin("gradients").differentiable(model)
    if special is None and name == "cheat_over":
        special = plugin("gradients").inner(model)
    inside = plugin("inside").differentiable(model) if special is None else [special]
    inside = inside or plugin("blind").differentiable(model)
    if inside is not None:
        return inside, True
    if name in ("cheat_other_network", "cheat_purified"):
        return [model], name == "cheat_other_network"
    if name == "cheat_random_resize":
        return [Averaged(model, 20)], False
    if any(part in name for part in ("dither", "noise", "trivial_surrogate")):
        return [Averaged(nn.Sequential(Noise(defense.sigma), model[1]), 20)], False  # type: ignore[index]
    return [], False


class Pool:
    """Candidates that every cheat meets: made on the networks that answer for most of them."""

    def __init__(self, fits: Fits, x: Tensor, y: Tensor) -> None:
        self.first, second = (
            fits(registry.DEFENSES.make(Spec(name, {})), name) for name in ("undefended", "twin")
        )
        self.x, self.y = x, y
        self.both = Pair(self.first, second)
        on_grid = pgd(self.first, x, y, eps=3 / 16, restarts=3)
        self.linf = torch.cat([pgd(self.first, x, y), (on_grid * 16).round() / 16])
        self.l0 = pairs(self.first, x, y)


class Pair(nn.Module):
    """The least favourable of two networks, softly: the mean of their logits."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.first(x) + self.second(x)
        return logits / 2


def measure(seed: int, count: int, only: str) -> Iterator[tuple[str, float, float, float]]:
    """Yield a case's label, its accuracy and what is left of it under L∞ and L0, in shares."""
    from bench.plugins.contracts import DataSettings

    data = registry.DATASETS.make(Spec("digits", {})).load(DataSettings())
    fits = Fits(data, seed)
    ids = data.sources(count, 0)
    pools: dict[str, tuple[Tensor, Tensor, Pool]] = {}
    for name, params in CASES:
        if only not in name:
            continue
        torch.manual_seed(seed)
        defense = registry.DEFENSES.make(Spec(name, params))
        model = fits(defense, name)
        # Those who know the test split by heart are asked about images that are not in it.
        split = "validation" if name in ("cheat_reads_memory", "cheat_knows_test_set") else "test"
        if split not in pools:
            rows = data.test.take(ids) if split == "test" else data.validation.take(slice(count))
            pools[split] = rows.x, rows.y, Pool(fits, rows.x, rows.y)
        x, y, pool = pools[split]
        draws = DRAWS if any(part in name for part in STOCHASTIC) else 1
        special, exact = subjects(name, defense, model)
        both = [pool.both] if "alternating" in name or "random_network" in name else []
        fresh = any(f"_{family}_" in type(defense).__module__ for family in REMEMBERS)
        clean = survives(model, x[None], y, draws=draws, fresh=fresh)
        ways: list[list[Callable[[Tensor], Tensor]]] = [
            [partial(_taken, plugin("field").found(model, pool.linf)),
             partial(_taken, plugin("routed").found(model, x, y, EPS)),
             *[partial(_pgd_on, one, x, y) for one in [*both, *special]]],
            [partial(_taken, plugin("field").found(model, pool.l0)),
             *[partial(_pairs_on, one, x, y) for one in [*both, *([model] if exact else [])]]],
        ]  # fmt: skip
        left = []
        for attacks in ways:
            standing = clean.clone()
            for attack in attacks:
                (rows,) = standing.nonzero(as_tuple=True)
                if len(rows):
                    found = attack(rows)
                    standing[rows] = survives(model, found, y[rows], draws=draws, fresh=fresh)
            left.append(standing.float().mean().item())
        shown = ", ".join(f"{key} = {value}" for key, value in params.items())
        yield f"`{name}`" + (f" ({shown})" if shown else ""), clean.float().mean().item(), *left


def _taken(found: Tensor, rows: Tensor) -> Tensor:
    return found[:, rows]


def _pgd_on(model: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    return pgd(model, x[rows], y[rows], restarts=3)


def _pairs_on(model: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    return pairs(model, x[rows], y[rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--only", default="", help="part of a name; then nothing is written")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    discovery.load_plugins([str(HERE / f"{family}.py") for family in FAMILIES])
    seeds = [int(seed) for seed in options.seeds.split(",")]
    table: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        start = time.perf_counter()
        for label, *shares in measure(seed, options.sources, options.only):
            table.setdefault(label, []).append((shares[0], shares[1], shares[2]))
            spent = time.perf_counter() - start
            if not options.only:
                text = page(table, seeds, options.sources)
                (HERE / "README.md").write_text(text, encoding="utf-8")
            print(seed, label, *[f"{share:.2f}" for share in shares], f"{spent:.0f} s", flush=True)  # noqa: T201


def page(table: dict[str, list[tuple[float, float, float]]], seeds: list[int], count: int) -> str:
    """Return the page: what the folder holds, and the table."""
    lines = [
        "# Cheats, and what is true of them",
        "",
        (
            "Dishonest defenses (`silence`, `memory`, `suspicion`, `gradients`, `scale`, `batch`, "
            "`chance`, `inside`, `reference`, `field`, `blind`, `routed`), honest unusual networks "
            "(`honest`) and awkward ones (`awkward`), each a plugin: "
            "`--plugin tests/cheats/FILE.py`. Written by "
            f"`python tests/cheats/truth.py --seeds {','.join(map(str, seeds))}`."
        ),
        "",
        (
            f"Worst-case accuracy in percent, {count} sources of digits, training seeds "
            f"{', '.join(map(str, seeds))}, by the attacks that `truth.py` describes: L∞ {EPS}, "
            f"L0 of {FEATURES} features. An upper bound of the truth: the best attack found. "
            f"Networks that answer by chance are judged by the majority of {DRAWS} draws. "
            "A row with fewer figures was measured at the first seeds alone."
        ),
        "",
        f"| defense | accuracy | L∞ {EPS} | L0 {FEATURES} |",
        "|---|---|---|---|",
    ]
    for label, rows in table.items():
        cells = [" / ".join(f"{100 * row[at]:.0f}" for row in rows) for at in range(3)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
