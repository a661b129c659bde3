"""Tasks made of a few settings."""

from collections.abc import Sequence
from pathlib import Path

from fedlora.config import Config
from fedlora.tasks.classification import Classification


def classification(model: str | Path, labels: Sequence[str], max_length: int) -> Classification:
    given = {"model": {"name": str(model)}, "data": {"max_length": max_length}}
    return Classification(Config.model_validate(given), labels)
