"""What every node must have in common, and what one has otherwise."""

from collections.abc import Mapping
from typing import Any


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a node has otherwise than the run, in words; empty where it agrees."""
    out = []
    if theirs.get("version") != ours.get("version"):
        out.append(f"fedlora {theirs.get('version')} in place of {ours.get('version')}")
    if list(theirs.get("labels", [])) != list(ours.get("labels", [])):
        out.append(f"labels {theirs.get('labels')} in place of {ours.get('labels')}")
    if theirs.get("base") != ours.get("base"):
        out.append("other weights of the base model (model.name, its revision or its files)")
    if theirs.get("format") != ours.get("format"):
        out.append(
            f"a base in {theirs.get('format')} in place of {ours.get('format')} (set model.dtype "
            "and model.quantize for all)"
        )
    if theirs.get("tokenizer") != ours.get("tokenizer"):
        out.append("another tokenizer")
    return out
