"""What was named as a pretrained model and is none: what it is, and what to name instead."""

import json
import shlex
from pathlib import Path
from typing import Any

from fedlora.untrusted import plain

ADAPTER, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
CLASSES = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
}
OTHERS = ("*.gguf", "*.onnx", "onnx/*.onnx", "*.h5", "*.msgpack", "*.bin", "*.pt", "*.pth")


def file(path: Path) -> str:
    """Of a file in place of a folder."""
    if path.suffix == ".gguf":
        return f"is a file: set model.name to {str(path.parent)!r} and model.gguf to {path.name!r}"
    return (
        f"is a file: set model.name to its folder, {str(path.parent)!r}, which needs config.json "
        "and a tokenizer beside the weights"
    )


def folder(place: Path) -> str:
    """Of a folder without a config.json."""
    if (place / "run.json").is_file() and (place / "config.toml").is_file():
        return f"is a run of fedlora. {_exported(place)}"
    if (place / "model_index.json").is_file():
        return "is a pipeline of diffusers, which makes pictures: set model.name to a text model"
    inside = sorted(path.parent for path in place.glob("*/config.json"))
    inside += sorted(path.parent for path in place.glob("snapshots/*/config.json"))
    if inside:
        named = " or ".join(repr(str(path)) for path in inside[:3])
        return f"has no config.json of its own: did you mean {named}?"
    there = ", ".join(sorted(plain(path.name, 60) for path in place.iterdir())[:8])
    return (
        f"has no config.json (it holds {there or 'nothing'}): set model.name to a folder with "
        "config.json, weights and tokenizer, or to a hub name"
    )


def adapter(place: Path) -> str:
    """Of a folder that holds an adapter, with or without what says which its base is; "" where it
    holds none."""
    found = [name for name in (ADAPTER, *WEIGHTS) if (place / name).is_file()]
    if not found:
        return ""
    if ADAPTER not in found:
        return (
            f"it holds an adapter ({found[0]}) without its {ADAPTER}: set model.name to the whole "
            "model that the adapter was merged into"
        )
    if (place.parent / "run.json").is_file():
        return (
            f"it holds an adapter ({ADAPTER}), that of the run {place.parent.name}, and no whole "
            f"model. {_exported(place.parent)}"
        )
    return (
        f"it holds an adapter ({ADAPTER}), whose base would be loaded from wherever that says. Set "
        f"model.name to a whole model: merge the adapter into its base{_merged(place)}"
    )


def formats(place: Path) -> str:
    """The weights of a folder that are in other formats, a few; "" where there are none."""
    found = [path for pattern in OTHERS for path in sorted(place.glob(pattern))]
    return ", ".join(str(path.relative_to(place)) for path in found[:4])


def _exported(run: Path) -> str:
    words = shlex.join(["fedlora", "export", str(run), f"{run.name}-merged", "--merge"])
    return (
        f"{words} writes a whole model, for model.name; fedlora run --resume {run.name} goes on "
        "with the run"
    )


def _merged(place: Path) -> str:
    """How to merge an adapter, once, where its base is trusted."""
    known = _read(place / ADAPTER)
    base, kind = known.get("base_model_name_or_path"), CLASSES.get(str(known.get("task_type")))
    of = f", {plain(base, 120)!r}" if isinstance(base, str) and base else ""
    if "PeftModel.from_pretrained(base, " in _text(place / "README.md"):
        lines = "its README.md loads both; then"
    elif kind:
        lines = (
            f"from peft import {kind}; from transformers import AutoTokenizer; "
            f"tokenizer = AutoTokenizer.from_pretrained({str(place)!r}); "
            f"model = {kind}.from_pretrained({str(place)!r});"
        )
    else:
        return of
    saved = "; ".join(f"{x}.save_pretrained('merged')" for x in ("model", "tokenizer"))
    return f"{of}, in Python: {lines} model = model.merge_and_unload(); {saved}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
