"""Where a process has its model, and in which format: what the configuration leaves open."""

import os
from typing import Any

import psutil
import torch

from fedlora.config import Config, Model

FREE = 0.5  # the share of free memory that passes may have
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def settled(config: Config, device: str | None = None) -> Config:
    """The configuration with this process's device, by default the simulation's, and the base's
    format on it."""
    place = placed(device or config.simulation.device)
    dtype = chosen(config.model, place)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": dtype}),
            "simulation": config.simulation.model_copy(update={"device": place}),
        }
    )


def prepare(config: Config) -> None:
    """Have this process compute as a settled configuration says: with the same bits each time, and
    in TF32 or not. Before the first product on a GPU, which takes its workspace then.

    Reference: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32" if config.model.tf32 else "none"
    same = config.simulation.deterministic and torch.device(config.simulation.device).type != "cpu"
    if same:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(same)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # nothing here reads any
    torch.backends.cudnn.deterministic = same


def placed(device: str) -> str:
    """A device by name; auto is a CUDA GPU where there is one, else the CPU."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def cards(device: str) -> list[str]:
    """The GPUs of a device by its name, as CUDA_VISIBLE_DEVICES has them: of cuda all that this
    process sees, of cuda:1 that one; none of others."""
    place = torch.device(placed(device))
    if place.type != "cuda":
        return []
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ""
    names = [name.strip() for name in seen.split(",")] if seen else []
    every = range(torch.cuda.device_count()) if place.index is None else [place.index]
    return [names[i] if i < len(names) else str(i) for i in every]


def chosen(model: Model, device: str) -> str:
    """The format of the base's weights on a device, by its name in the configuration. A quantised
    base computes in it."""
    if model.dtype != "auto":
        return model.dtype
    modern = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if model.quantize or modern else "fp32"


def release(device: str) -> None:
    """Let other processes have what torch holds of a device's memory unused."""
    place = torch.device(device)
    if place.type in ("cuda", "xpu"):
        torch.get_device_module(place).empty_cache()


def free(device: torch.device | str) -> int:
    """Bytes that this process may still take where its model is: of a GPU's own memory, what torch
    holds of it unused included; else of the machine's."""
    place = torch.device(device)
    if place.type not in ("cuda", "xpu"):
        return int(psutil.virtual_memory().available)
    module = torch.get_device_module(place)
    unused = module.memory_reserved(place) - module.memory_allocated(place)
    return int(module.mem_get_info(place)[0] + unused)
