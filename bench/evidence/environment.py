"""What a run ran on: recorded, not keyed, so that a mix of versions can be seen."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from bench.base.types import Document
from bench.plan.graph import Plan, data_name

LIBRARIES = (
    "adversarial-robustness-toolbox", "matplotlib", "numpy", "pandas", "pyarrow", "safetensors",
    "scikit-learn", "statsmodels", "torch", "torchattacks", "torchvision",
)  # fmt: skip


DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux says which driver of a GPU is loaded."""


def describe(plan: Plan, device: str) -> Document:
    """Return the matrix as it was resolved, the versions and the machine."""
    return {
        "retort": _version("retort-bench") or "unknown",
        "matrix": plan.matrix.model_dump(mode="json"),
        "dataset": data_name(plan.dataset),
        "network": plan.network["name"],
        "recipe": plan.recipe,
        "device": device_name(device),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        **accelerator(device),
    }


def machine(device: str, name: str | None = None) -> Document:
    """Return what ``describe`` says of the machine that does the work.

    ``name``: the model of its processor or GPU, by default that of this machine's ``device``.
    """
    return {"device": name or device_name(device), **accelerator(device)}


def accelerator(device: str) -> Document:
    """Return what a result on a GPU depends on beside torch: CUDA, cuDNN, driver; nothing on a CPU.

    The driver's version stands where Linux tells it, and is None elsewhere.
    """
    if device == "cpu":
        return {}
    import torch

    return {
        "accelerator": {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": _driver(),
        }
    }


def _driver() -> str | None:
    if not DRIVER.exists():
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text(encoding="utf-8", errors="replace"))
    return found[0] if found else None


def hardware(device: str, name: str | None = None) -> str:
    """Return on what results are the same to the last bit: ``cpu``, or the model of the GPU.

    ``name``: that model, by default of this machine's ``device``.
    """
    return "cpu" if device == "cpu" else f"cuda: {name or device_name(device)}"


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
