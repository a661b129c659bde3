"""What every node must have in common, and what one has otherwise."""

from collections.abc import Mapping
from typing import Any

import fedlora


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a node has otherwise than the run, in words; empty where it agrees."""
    out = []
    if theirs.get("version") != fedlora.__version__:
        out.append(f"fedlora {theirs.get('version')} in place of {fedlora.__version__}")
    if list(theirs.get("labels", [])) != list(ours["labels"]):
        out.append(f"labels {theirs.get('labels')} in place of {ours['labels']}")
    if theirs.get("base") != ours["base"]:
        out.append("other weights of the base model (model.name, its revision or its files)")
    if theirs.get("tokenizer") != ours["tokenizer"]:
        out.append("another tokenizer")
    return out
