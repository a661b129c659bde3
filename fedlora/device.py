"""Where a process has its model, and in which format: what the configuration leaves open."""

import psutil
import torch

from fedlora.config import Config, Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def placed(device: str) -> str:
    """A device by name; auto is a CUDA GPU where there is one, else the CPU."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen(model: Model, device: str) -> str:
    """The format of the base's weights on a device, by its name in the configuration. A quantised
    base computes in it."""
    if model.dtype != "auto":
        return model.dtype
    modern = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if model.quantize or modern else "fp32"


def free(device: torch.device) -> int:
    """Bytes of its memory that nobody has; on the CPU, that are to be had without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
