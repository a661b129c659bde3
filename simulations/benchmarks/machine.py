"""What the benchmarks ran on and with: named, and without a path."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

PACKAGES = ["torch", "flwr", "peft", "transformers", "opacus", "ray"]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def machine() -> dict[str, str]:
    """Processor, cores, caches (of a core's view), memory and GPU, where the system tells."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "caches": _caches(CACHES),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "GPU": ", ".join(gpus),
    }
    return {what: told or "–" for what, told in found.items()}


def versions() -> dict[str, str]:
    """Of Python and of what decides how fast it is; a dash for what is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "–"


def _processor() -> str:
    """Linux's name for it, else Python's."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


def _caches(folder: Path) -> str:
    """As in "L1 Data 48K, L2 Unified 1024K", from the kernel's description."""
    told = []
    for cache in sorted(folder.glob("index*")):
        level, kind, size = ((cache / x).read_text().strip() for x in ("level", "type", "size"))
        told.append(f"L{level} {kind} {size}")
    return ", ".join(told)
