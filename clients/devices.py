"""The devices of a node as its owner writes them: cuda:0, or cuda:0,1,2,3 for several."""

from typing import Literal

Mode = Literal["ddp", "fsdp"]

PATTERN = r"^(auto|cpu|mps|xpu(:\d+)?|cuda(:\d+(,\d+)*)?)$"


def named(device: str) -> tuple[str, ...]:
    """Each by name."""
    kind, _, indices = device.partition(":")
    return tuple(f"{kind}:{int(i)}" for i in indices.split(",")) if indices else (kind,)


def fault(device: str, mode: Mode) -> str:
    """What is wrong with what was written, or ""."""
    names = named(device)
    if len(set(names)) < len(names):
        return f"device = {device} has one of them twice"
    if mode == "fsdp" and len(names) == 1:
        return "parallel = fsdp needs several devices, as device = cuda:0,1"
    return ""
