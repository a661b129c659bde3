"""What of a base's folder goes along with the whole model that was made of it: what a run does not
change of its tokenizer, of how it generates, and its terms of use. Nothing else does: a folder may
hold rows or notes too, and what is exported is published.
"""

import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants

from fedlora.modelfiles import TERMS

GENERATION = "generation_config.json"
GOES = (
    *("*config*.json", "tokenizer*.json", "*token*.json", "vocab*.json", "vocab*.txt"),
    *("merges.txt", "*.model", "*.tiktoken", "chat_template.*", *map(str.lower, TERMS)),
)
STAYS = ("config.json", "adapter_config.json", "*quant*config*.json", "*.index.json", ".*")
TEMPLATES = "chat_template.*"  # a tokenizer's, or by its old name a processor's


def carry(sources: Iterable[Path], folder: Path) -> None:
    """Copy into a folder that has a model and its tokenizer what else of GOES the base's folders
    have. What is there is the run's own, and stays; links that lead elsewhere are not followed."""
    (folder / GENERATION).unlink(missing_ok=True)
    templates = any(folder.glob(TEMPLATES))
    for source in sources:
        for path in sorted(source.iterdir()):
            stale = templates and fnmatch(path.name.lower(), TEMPLATES)
            if _goes(path, source) and not stale and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)


def _goes(path: Path, source: Path) -> bool:
    """Whether a file is one of GOES, and the folder's own: or the hub's cache's, to which the
    folder of a snapshot links."""
    name, places = path.name.lower(), (source, Path(constants.HF_HUB_CACHE))
    named = any(fnmatch(name, x) for x in GOES) and not any(fnmatch(name, x) for x in STAYS)
    inside = any(path.resolve().is_relative_to(place.resolve()) for place in places)
    return named and inside and path.is_file()
