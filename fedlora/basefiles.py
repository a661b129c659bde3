"""What of a base's folder goes along with the whole model that was made of it: whatever a run does
not change, from the settings of generation to the licence."""

import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

GENERATION = "generation_config.json"
# What is the base's alone: its weights in any format, code, where weights are, how they were
# quantised, what it says of itself.
NOT = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.ot"),
    *("*.gguf", "*.npz", "*.tflite", "*.pdparams", "*.pkl", "*.pickle", "*.zip", "*.tar*"),
    *("*.py", "*.index.json", "*quant*config*.json", "adapter_config.json", "config.json"),
    *("readme*", ".*"),
)
TEMPLATES = "chat_template.*"  # a tokenizer's, or by its old name a processor's


def carry(sources: Iterable[Path], folder: Path) -> None:
    """Copy into a folder that has a model and its tokenizer what else the base's folders have, and
    how the base generates. What is there is the run's own, and stays."""
    (folder / GENERATION).unlink(missing_ok=True)
    templates = any(folder.glob(TEMPLATES))
    for path in (path for source in sources for path in sorted(source.iterdir())):
        name = path.name.lower()
        left = any(fnmatch(name, pattern) for pattern in NOT)
        stale = templates and fnmatch(name, TEMPLATES)
        if path.is_file() and not left and not stale and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
