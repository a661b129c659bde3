"""A node with an owner, over whose rows a server asks what it likes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import strategies
from clients import app
from clients.trainer import handle
from fedlora import settings, wire
from fedlora.orders import Order
from fedlora.views import fingerprint, manifest
from fedlora.wire import Parcel
from tests.federation import World
from tests.fedlora.tasks import talk

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIN = "7341"
SPY = "{{ raise_exception(messages[0].content) }}"
ASK = "{% if '" + PIN + "' in messages[0].content %}{{ raise_exception('yes') }}{% endif %}x"

Settings = dict[str, Any]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts_of(world: World, root: Path) -> Callable[..., Settings]:
    """Makes a node's settings, of labelled rows, the last of which has another text or label."""

    def make(**last: str) -> Settings:
        lines = [json.loads(x) for x in world.data.read_text().splitlines() if '"books"' in x]
        rows = [{"text": x["text"], "label": x["label"]} for x in lines]
        path = written(root / "texts.jsonl", [*rows[:-1], rows[-1] | last])
        return at(root, path, world.model)

    return make


def talks_of(root: Path) -> Callable[..., Settings]:
    """Makes a node's settings, of conversations, the first of which has another question."""
    model = talk.save(root / "talks")

    def make(question: str = "what colour has thing1", **first: Any) -> Settings:
        rows = [json.loads(x) for x in talk.rows(root / "all.jsonl").read_text().splitlines()]
        kept = [{k: row[k] for k in ("instruction", "output")} for row in rows]
        changed = [kept[0] | {"instruction": question, **first}, *kept[1:]]
        path = written(root / "talks.jsonl", changed)
        return at(root, path, model)

    return make


def at(root: Path, data: Path, model: Path) -> Settings:
    app.forget()  # what the file had before
    state = root / hashlib.sha256(data.read_bytes()).hexdigest()[:8]  # of these rows alone
    return {"client": "me", "data": str(data), "model": str(model), "state-dir": str(state)}


def run(root: Path, own: Settings, **given: Any) -> dict[str, Any]:
    """A run's flat configuration that goes with a node, but for what is given by dotted key."""
    flat: Settings = {"strategy.name": "fedit", "privacy.epsilon": 3.0, "model.name": own["model"]}
    if own["data"].endswith("talks.jsonl"):
        flat |= {"model.task": "instruction", "adapter.target_modules": "all-linear"}
        flat |= {"data.max_length": 32}
    tree = World(Path(own["model"]), Path(own["data"])).tree(root, flat)
    for key, value in given.items():
        section, _, name = key.partition("__")
        tree[section][name] = value
    config, _ = settings.resolve(tree, strategies.load)
    return settings.to_flat(config)


def asked(own: Settings, flat: Settings, kind: str = "query", parcel: Parcel | None = None) -> Any:
    """The parcel that the node's trainer answers."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    context = Context(1, 1, own, RecordDict(), flat)
    reply, _ = handle(Message(wire.pack(parcel or Parcel()), 1, kind), context, 0)
    return wire.unpack(reply.content)


def ordered(own: Settings, flat: Settings, round: int = 1) -> Any:
    """The node's answer to a round of training."""
    context = Context(1, 1, own, RecordDict(), flat)
    view = app.resident(context).adapter.initial()
    name = f"000{round}-0"
    digest = fingerprint(manifest(view))
    order = Order("e", round, "train", "me", 4, 2.0, 9, name, "", digest, planned=3)
    return asked(own, flat, "train", Parcel(order.facts(), view))
