"""What a run ran on: recorded, not keyed, so that a mix of versions can be seen."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from bench.base.types import Document
from bench.plan.graph import Plan, data_name

LIBRARIES = (
    "adversarial-robustness-toolbox", "matplotlib", "numpy", "pandas", "pyarrow", "safetensors",
    "scikit-learn", "statsmodels", "torch", "torchattacks", "torchvision",
)  # fmt: skip


def describe(plan: Plan, device: str) -> Document:
    """Return the matrix as it was resolved, the versions and the machine.

    ``device``: the model of the processor or the GPU that did the work, as ``device_name`` says.
    """
    return {
        "retort": _version("retort-bench") or "unknown",
        "matrix": plan.matrix.model_dump(mode="json"),
        "dataset": data_name(plan.dataset),
        "network": plan.network["name"],
        "recipe": plan.recipe,
        "device": device,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def device_name(device: str) -> str:
    """Return the model of the processor or of the GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    return _processor() or platform.processor() or "CPU"


def _processor() -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
