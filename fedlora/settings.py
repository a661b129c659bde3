"""Reading the configuration: a TOML file, `section.key=value`, Flower's flat run-config.

Every way ends in `resolve`, which lays the task's and the method's documented defaults underneath,
validates, and names what is wrong. Flower's run-config knows neither lists nor nulls, nor does TOML
know nulls: there they are written as strings, `"[1, 2]"` and `"null"`.
"""

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from fedlora import compatible, files, tasks
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.privacy import plan
from fedlora.strategy import Strategy

Tree = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
Load = Callable[[str], type[Strategy]]


def resolve(
    given: Mapping[str, Any], load: Load, *, ignore: Iterable[str] = ()
) -> tuple[Config, Strategy]:
    """The validated configuration and its method. Raises UserError where something is wrong, or
    the two do not go together.

    Args:
        given: nested tables as the user wrote them; they win over the method's own defaults.
        load: finds a strategy class by name.
        ignore: settings of other methods, to be passed over where one table serves many methods.
    """
    given = _tables(given)
    strategy = merged({"strategy": Config().strategy}, given)["strategy"]
    cls = load(str(strategy["name"]))
    settings = {k: v for k, v in strategy.items() if k != "name"}
    settings = {k: v for k, v in settings.items() if k in cls.model_fields or k not in set(ignore)}
    settings = _without_nulls(settings, cls)
    method = _validated(cls, settings, "strategy")

    task = given.get("model", {}).get("task", "")
    defaults = merged(_nested(tasks.DEFAULTS.get(task, {})), _nested(cls.defaults))
    tree = merged(defaults, given)
    tree["strategy"] = {"name": strategy["name"], **method.model_dump(mode="json")}
    adapter = tree.setdefault("adapter", {})
    if isinstance(adapter, dict) and adapter.get("kind") is None:
        adapter["kind"] = cls.adapter
    config = _validated(Config, tree, "")
    plan.check(config, method)
    compatible.check(config, method)
    return config, method


def read(path: Path | None, overrides: Iterable[str]) -> Tree:
    """The tables of a TOML file with `section.key=value` laid over them."""
    tree: Tree = {}
    if path is not None:
        try:
            tree = _with_template(tomllib.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            raise UserError(f"there is no configuration file {path}") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise UserError(f"the configuration file {path} cannot be read: {e}") from None
    return merged(tree, parse(overrides))


def parse(overrides: Iterable[str]) -> Tree:
    """`["run.rounds=3"]` as nested tables."""
    flat: Tree = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or "." not in key:
            raise UserError(f"'{item}' is no setting: write section.key=value, as in run.rounds=3")
        flat[key.strip()] = _value(text.strip())
    return _with_template(_nested(flat))


def from_flat(flat: Mapping[str, Any]) -> Tree:
    """Flower's run-config, `{"run.rounds": 3, "strategy.ranks": "[4, 8]"}`, as nested tables."""
    return _nested({k: _value(v) if isinstance(v, str) else v for k, v in flat.items()})


def to_flat(config: Config) -> dict[str, bool | int | float | str]:
    """The configuration as Flower's run-config can carry it."""
    tables = config.model_dump(mode="json")
    return {f"{s}.{k}": _scalar(v) for s, table in tables.items() for k, v in table.items()}


def write(config: Config, path: Path) -> None:
    """The resolved configuration as a TOML file that `read` reads back to the same."""
    tables = config.model_dump(mode="json")
    plain = {
        s: {k: "null" if v is None else v for k, v in table.items()} for s, table in tables.items()
    }
    files.write(path, tomli_w.dumps(plain))


def nearest(word: str, known: Iterable[str]) -> str:
    """The closest known word as a hint, or nothing."""
    match = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def _validated(model: type[M], tree: Mapping[str, Any], where: str) -> M:
    try:
        return model.model_validate(tree)
    except ValidationError as e:
        lines = dict.fromkeys(_line(model, error, where) for error in e.errors())
        raise UserError(
            "the configuration is wrong:\n" + "\n".join(f"  {x}" for x in lines)
        ) from None


def _line(model: type[BaseModel], error: Any, where: str) -> str:
    path = [str(x) for x in error["loc"]]
    fields = model.model_fields
    section = fields[path[0]].annotation if path and path[0] in fields else None
    if isinstance(section, type) and issubclass(section, BaseModel):
        fields, path = section.model_fields, path[:2]
    else:
        path = path[:1]  # what follows is the way into a union or a list
    known = [*(["name"] if where == "strategy" else []), *fields]
    key = ".".join([where, *path] if where else path)
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key{nearest(path[-1], known)} (known: {', '.join(known)})"
    message = error["msg"].removeprefix("Value error, ")
    whole = isinstance(error["input"], dict | BaseModel)  # several fields that do not go together
    if whole:
        return f"{key}: {message}" if key else message
    return f"{key} = {error['input']!r}: {message}"


def _value(text: str) -> Any:
    """A number, truth value, list or null where the text is one; else the text itself."""
    if text == "null":
        return None
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            pass
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _scalar(value: Any) -> bool | int | float | str:
    """A text that reads as something else, such as "2024", is quoted."""
    plain = isinstance(value, bool | int | float) or (
        isinstance(value, str) and _value(value) == value
    )
    return value if plain else json.dumps(value)


def _with_template(tree: Tree) -> Tree:
    """The tables with the text of a chat template in the place of its file."""
    model = tree.get("model")
    given = model.get("chat_template") if isinstance(model, dict) else None
    if isinstance(model, dict) and isinstance(given, str) and "{" not in given:
        path = Path(given).expanduser()
        if path.is_file():
            model["chat_template"] = path.read_text("utf-8")
    return tree


def _nested(flat: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        table = tree
        for name in path:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UserError(f"'{key}': {name} was given a value already, so it has no keys")
        table[last] = value
    return tree


def _tables(tree: Mapping[str, Any]) -> Tree:
    """A copy in which each section is a table and the string 'null' is None. Where a field cannot
    be null that stands for its default, the method's where it has one, and is left out."""
    for section, table in tree.items():
        if section not in Config.model_fields:
            known = ", ".join(Config.model_fields)
            hint = nearest(section, Config.model_fields)
            raise UserError(f"there is no section '{section}'{hint} (sections: {known})")
        if not isinstance(table, Mapping):
            raise UserError(f"'{section}' is a section: write {section}.key=value")
    nulls = {
        s: {k: None if v == "null" else v for k, v in table.items()} for s, table in tree.items()
    }
    return {
        s: _without_nulls(table, Config.model_fields[s].annotation) for s, table in nulls.items()
    }


def _without_nulls(table: Tree, model: Any) -> Tree:
    """The table less the nulls of fields whose type does not admit them."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {k: v for k, v in table.items() if k != "name" or v is not None}
    fields = model.model_fields
    return {
        k: v
        for k, v in table.items()
        if v is not None or k not in fields or NoneType in get_args(fields[k].annotation)
    }


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """The tables of `above` laid over those of `below`, key by key."""
    tree = {k: dict(v) if isinstance(v, Mapping) else v for k, v in below.items()}
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), dict)
        tree[key] = {**tree[key], **value} if both else value
    return tree
