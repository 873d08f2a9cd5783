"""How two large matrices would run on 1, 8, 64 and 1,000 GPUs: python docs/scale_simulation.py.

A list of tasks goes to GPUs; what a task leaves crosses one link to the machine that started the
run, and is written there by one writer. Everything is a number below: MEASURED on this project's
two cores (docs/scale.md says when), COUNTED in published runs, or ASSUMED of hardware that nobody
has tried. Change one and run it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

# MEASURED, on two busy cores (load 14); a good disk is faster.
SECONDS_A_FILE = 0.016  # checksum, write, sync, rename of a small file; a task leaves three
BYTES_A_SECOND = 190e6  # the same of a large one
SECONDS_A_KEY = 0.0065  # to decide what a node is: 6.5 s for the 989 cells of `full`
RECORD = 190  # bytes of a record

# COUNTED: rows through the network, forward and backward each one, an attempt.
JSMA = {
    "probs": 28.0,
    "log_odds": 60.0,
    "logits": 136.0,
}  # papernot-cifar10 at two epochs, 981 attempts
STEPS = 56  # of JSMA at most, two features each
PANEL = {  # L∞ at its smallest budget, over eight defenses (verdict-digits)
    "naive pgd": 183.0, "pgd": 183.0, "apgd": 196.0, "square": 345.0, "transfer": 40.0,
    "transfer, twin": 40.0, "noise": 28.0, "closing apgd": 910.0, "closing apgd, long": 201.0,
    "closing square": 1000.0,
}  # fmt: skip

# ASSUMED.
GPU = 30e12  # useful float32 operations a second: half of what an H100 or H200 is sold with
PAPERNOT = 63e6  # operations of a row: 1.58 ms measured on a core that does some 40 GFLOP/s
RESNET50 = 8.2e9  # 4.1e9 multiplications and as many additions; 0.12 s on that core
LAUNCH = 0.001  # seconds that a step takes however few its rows: 109 launches of 5 to 8 µs
ROWS = 2048  # rows at once
START = 0.5  # seconds of a task around its passes: weights, seeds, the judge
LINK = 1.25e9  # bytes a second into the machine that writes: 10 Gbit/s
TRAINING = 600.0  # seconds of a fit of Papernot's CIFAR-10 network

BLOCK = 500  # sources of a task (bench.measure.cell.BLOCK)


@dataclass
class Task:
    """Seconds on a GPU, bytes that it leaves, and the model whose fit comes before it."""

    seconds: float
    leaves: float
    model: int | None = None
    fits: int | None = None


def attack(rows: int, passes: float, steps: float, operations: float) -> float:
    """Return the seconds of an attack on so many rows: its passes, or the launches of its steps."""
    chunks = -(-rows // ROWS)
    return START + max(rows * passes * operations / GPU, chunks * steps * LAUNCH)


def cifar(sparse: bool = False) -> Iterator[Task]:
    """Yield papernot-cifar10-temperatures with --sources all, ten seeds: 20 defenses, 7 attacks."""
    attempts = 9 * BLOCK
    an_input = 112 * 6 if sparse else 4 * 3072
    for model in range(20 * 10):
        yield Task(TRAINING, 2e6, fits=model)
        yield Task(START + 5.0, 10_000 * RECORD, model)  # the probe
        for _ in range(10_000 // BLOCK):
            for passes in JSMA.values():
                seconds = attack(attempts, passes, STEPS, PAPERNOT)
                yield Task(seconds, attempts * (an_input + RECORD), model)
            for _ in range(4):
                yield Task(attack(BLOCK, 2, 2, PAPERNOT), BLOCK * (4 * 3072 + RECORD), model)


def imagenet() -> Iterator[Task]:
    """Yield an L∞ panel on ResNet-50, 224 × 224, 5,000 sources: a defense, a reference, 3 seeds."""
    for model in range(2 * 3):
        yield Task(START, 100e6, fits=model)  # handed over, not trained
        for _ in range(5_000 // BLOCK):
            for passes in PANEL.values():
                seconds = attack(BLOCK, passes, passes / 2, RESNET50)
                yield Task(seconds, BLOCK * (4 * 3 * 224 * 224 + RECORD), model)


@dataclass
class Server:
    """Something that serves one after another; ``busy``: the seconds that it worked."""

    free: float = 0.0
    busy: float = 0.0

    def serve(self, arrives: float, takes: float) -> float:
        """Return when what arrives then is done."""
        self.free = max(self.free, arrives) + takes
        self.busy += takes
        return self.free


def run(tasks: list[Task], gpus: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of a run, and how busy each part of it was, in [0, 1]."""
    waiting: dict[int | None, list[Task]] = {}
    for task in tasks:
        waiting.setdefault(task.model, []).append(task)
    ready = waiting.pop(None)[::-1]
    driver, link = Server(), Server()
    working: list[tuple[float, int, Task]] = []
    arriving: list[tuple[float, int]] = []  # a fit that is written frees what needs its model
    now, used, number = 0.0, 0.0, 0
    while ready or working or arriving:
        while ready and len(working) < gpus:
            task = ready.pop()
            heapq.heappush(working, (now + task.seconds, number, task))
            used, number = used + task.seconds, number + 1
        if arriving and (not working or arriving[0][0] <= working[0][0]):
            now, model = heapq.heappop(arriving)
            ready[:0] = waiting.pop(model, [])
            continue
        now, _, task = heapq.heappop(working)
        crossed = link.serve(now, task.leaves / LINK)
        writes = 3 * SECONDS_A_FILE + task.leaves / BYTES_A_SECOND + SECONDS_A_KEY
        written = driver.serve(crossed, writes)
        if task.fits is not None:
            heapq.heappush(arriving, (written, task.fits))
    end = max(now, driver.free)
    busy = {"GPUs": used / (gpus * end), "writer": driver.busy / end, "link": link.busy / end}
    return end, busy


def main() -> None:
    """Print a table of each matrix."""
    matrices = {
        "papernot-cifar10-temperatures, all sources, ten seeds": list(cifar()),
        "the same, L0 inputs kept as what changed": list(cifar(sparse=True)),
        "L∞ panel, 224 × 224, 5,000 sources, ResNet-50": list(imagenet()),
    }
    for name, tasks in matrices.items():
        leaves = sum(task.leaves for task in tasks)
        work = sum(task.seconds for task in tasks)
        lines = [
            f"{name}: {len(tasks):,} tasks, {work / 3600:.1f} GPU hours, {leaves / 1e9:,.0f} GB\n",
            "| GPUs | time | GPUs busy | writer busy | link busy | saturates |",
            "|--:|--:|--:|--:|--:|---|",
        ]
        for gpus in (1, 8, 64, 1000):
            seconds, busy = run(tasks, gpus)
            most = max(busy, key=lambda part: busy[part])
            told = most if busy[most] > 0.7 else "none: the longest chain of tasks"
            shares = " | ".join(f"{share:.0%}" for share in busy.values())
            lines.append(f"| {gpus:,} | {seconds / 60:,.0f} min | {shares} | {told} |")
        print("\n".join(lines), end="\n\n")  # noqa: T201 (what it is for)


if __name__ == "__main__":
    main()
