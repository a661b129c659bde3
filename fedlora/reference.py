"""The configuration's reference as Markdown, from the fields themselves."""

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from fedlora.config import Config
from fedlora.strategy import Strategy

Schema = Mapping[str, Any]
Methods = Mapping[str, type[Strategy]]

HEAD = """# Configuration

<!-- Made from the code by `make docs`: change the fields in fedlora/config or strategies. -->

A run is described by a TOML file of the sections below, by `section.key=value` on the command line,
or by both, the command line winning. Whatever is not said has the method's own default where it has
one, and else the default here. An unknown key is an error. TOML has no null: there it is `"null"`.
`fedlora config` prints this page.
"""

NODE = "A node's own settings"
BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": "≥ {}",
    "exclusiveMaximum": "< {}",
    "maximum": "≤ {}",
    "minItems": "at least {}",
}
TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text"}


def reference(methods: Methods, node: type[BaseModel]) -> str:
    """Every section and field with type, default and description, every method's settings, and the
    model of a node's own."""
    sections = [
        _section(name, field.annotation, methods)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        else _methods(methods)
        for name, field in Config.model_fields.items()
    ]
    rows = [_row(key, field) for key, field in node.model_json_schema()["properties"].items()]
    return "\n".join([HEAD, *sections, _table(NODE, node, rows)])


def _section(name: str, model: type[BaseModel], methods: Methods) -> str:
    fields = model.model_json_schema()["properties"]
    rows = [
        _row(f"{name}.{key}", field, _own(f"{name}.{key}", methods))
        for key, field in fields.items()
    ]
    return _table(f"[{name}]", model, rows)


def _methods(methods: Methods) -> str:
    known = ", ".join(f"`{name}`" for name in methods)
    default = json.dumps(Config().strategy["name"])
    first = (
        "## [strategy]\n\n"
        "The method, and its own settings. What each does is in [methods](methods.md).\n\n"
        "| key | type | default | |\n|---|---|---|---|\n"
        f"| `strategy.name` | text | `{default}` | {known}, one of an installed package, or one of "
        "your own as `my_module:MyMethod`. |\n"
    )
    tables = [_method(name, cls) for name, cls in methods.items() if cls.model_fields]
    return "\n".join([first, *tables])


def _method(name: str, cls: type[Strategy]) -> str:
    fields = cls.model_json_schema()["properties"]
    rows = [_row(f"strategy.{key}", field) for key, field in fields.items()]
    return "#" + _table(f"strategy.name = {name}", cls, rows)


def _table(title: str, model: type[BaseModel], rows: Iterable[str]) -> str:
    head = "| key | type | default | |\n|---|---|---|---|\n"
    return f"## {title}\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n{head}{''.join(rows)}"


def _row(key: str, field: Schema, own: str = "") -> str:
    default = f"`{json.dumps(field.get('default'), ensure_ascii=False)}`{own}"
    cells = [f"`{key}`", _type(field), default, field.get("description", "")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _own(key: str, methods: Methods) -> str:
    """The defaults that methods bring for this field."""
    found = {name: cls.defaults[key] for name, cls in methods.items() if key in cls.defaults}
    return "".join(f"; {name} `{json.dumps(value)}`" for name, value in found.items())


def _type(field: Schema) -> str:
    """A field's JSON schema in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(option) for option in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field.get("type") == "null":
        return "null"
    bounds = [
        words.format(field[bound])
        for bound, words in BOUNDS.items()
        if field.get(bound) is not None and not (bound == "minItems" and field[bound] < 2)
    ]
    return " ".join([_kind(field), *[" and ".join(bounds)] * bool(bounds)])


def _kind(field: Schema) -> str:
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object":
        return f"table of {_type(field.get('additionalProperties', {}))}"
    return TYPES.get(field.get("type", ""), "value")
