"""What every node must have in common, and what one has otherwise."""

from collections.abc import Mapping
from typing import Any

from fedlora.untrusted import plain


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a node has otherwise than the run, in words; empty where it agrees."""
    out = []
    if theirs.get("version") != ours.get("version"):
        out.append(f"fedlora {_said(theirs.get('version'))} in place of {ours.get('version')}")
    if _listed(theirs.get("labels", [])) != _listed(ours.get("labels", [])):
        out.append(f"labels {_said(theirs.get('labels'))} in place of {_said(ours.get('labels'))}")
    if theirs.get("base") != ours.get("base"):
        out.append("other weights of the base model (model.name, its revision or its files)")
    if theirs.get("format") != ours.get("format"):
        out.append(
            f"a base in {_said(theirs.get('format'))} in place of {ours.get('format')} (set "
            "model.dtype and model.quantize for all)"
        )
    if theirs.get("tokenizer") != ours.get("tokenizer"):
        out.append("another tokenizer")
    return out


def _listed(labels: object) -> object:
    """Labels as a list, however they came; what are none stay what they are."""
    return list(labels) if isinstance(labels, list | tuple) else labels


def _said(value: object) -> str:
    """What the other side says it has, of which nothing is known, in short."""
    return plain(str(value) if isinstance(value, list | None) else value, 100)
