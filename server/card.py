"""The model card of what a run gives: what it is, what it was trained on, how to load it."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

import fedlora
from fedlora import gguf, report, settings, tasks
from fedlora.config import Model
from fedlora.errors import UserError
from fedlora.models import locate
from fedlora.runs import Row, RunDir
from fedlora.strategy import Strategy, stays
from fedlora.tasks import heads
from fedlora.untrusted import LONG, code, markdown, plain
from server.promise import promise

PIPELINES = {"SEQ_CLS": "text-classification", "CAUSAL_LM": "text-generation"}
SCORES = {
    "score": "score of the global model on the server's held-out rows",
    "test_loss": "its loss there, in nats",
    "perplexity": "its perplexity there",
    "personalised": "mean score of each client's own model on its own held-out rows",
    "exact_match": "exact match of generated answers",
    "rouge_l": "ROUGE-L of generated answers",
    "f1": "F1 of generated answers",
}

# Where parts stay with clients, what a round's row says of the server's rows is their models' mean.
LOCAL = {
    "score": "mean score of the clients' own models on the server's held-out rows",
    "test_loss": "their mean loss there, in nats",
    "perplexity": "the perplexity of that loss",
}


def card(
    run: RunDir,
    strategy: Strategy,
    client: str | None = None,
    merged: bool = False,
    labels: Sequence[str] = (),
) -> str:
    """README.md of what a run is exported to, as Markdown with the hub's front matter.

    Args:
        client: whose own model it is; None: the global one.
        merged: whether it is the whole model.
        labels: the run's, in the order of the head's rows; of a language model none.
    """
    rows, tree = report.load(run.metrics), settings.read(run.path / "config.toml", [])
    model, data = tree["model"], tree["data"]
    task = tasks.load(model["task"])
    head = ModelCardData(
        base_model=plain(model["name"]),
        library_name="transformers" if merged else "peft",
        pipeline_tag=PIPELINES[task.type],
        tags=["fedlora", "federated-learning", "lora", plain(tree["strategy"]["name"])],
    )
    rounds = report.rounds_of(rows)
    central = report.private(rounds) and tree["privacy"]["mode"] == "central"
    template = files(__package__).joinpath("card.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_escaped
    )
    environment.filters |= {"code": _code}
    return environment.from_string(template).render(
        head=Markdown(head.to_yaml()),
        name=run.path.name,
        model=model,
        data=data,
        method=tree["strategy"]["name"],
        paper=strategy.paper,
        settings=_settings(tree),
        rounds=rounds[-1]["round"] if rounds else 0,
        clients={} if central else _clients(rows),
        scores=_scores(rounds, model["task"], bool(stays(strategy))),
        promise=promise(rows, tree.get("privacy", {})),
        client=client,
        apart=sorted(stays(strategy)),
        merged=merged,
        auto=task.architecture.__name__,
        base=[Markdown(line) for line in _base(Model.model_validate(_set(model)), labels)],
        version=fedlora.__version__,
    )


class Markdown(str):
    """Text that is Markdown already."""


def _escaped(value: object) -> str:
    """What every expression of the template comes to: no name is markup."""
    return value if isinstance(value, Markdown) else markdown(str(value), LONG)


def _code(value: object) -> Markdown:
    return Markdown(code(str(value)))


def _base(model: Model, labels: Sequence[str]) -> list[str]:
    """What plain Transformers is to be told to load the base that an adapter was trained on."""
    given: dict[str, object] = {
        "revision": model.revision,
        "gguf_file": _gguf(model),
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}.get(model.dtype),
    }
    if labels:  # the head is the adapter's, whatever the base has
        given |= {**heads.named(labels), "ignore_mismatched_sizes": True}
    words = [f"{k}={_literal(v)}" for k, v in given.items() if v is not None]
    return [_literal(os.path.expanduser(model.name)), *words]


def _gguf(model: Model) -> str | None:
    """The GGUF file that the base is in, if it is in one."""
    try:
        place = locate(model.name, model.revision)
        found = gguf.chosen(place, model) if isinstance(place, Path) else None
    except (UserError, OSError, RuntimeError):  # it is not there any more
        return model.gguf
    return found.name if found else model.gguf


def _literal(value: object) -> str:
    """A value of Python in one line of ASCII, for a block of code, which no backtick ends."""
    return ascii(value).replace("`", r"\x60")


def _set(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of a run's config.toml without what it leaves open."""
    return {k: v for k, v in table.items() if v != "null"}


def _settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes the result, by dotted key; what is unset is left out."""
    chosen = {k: tree[k] for k in ("strategy", "adapter", "train")}
    flat = {f"{s}.{k}": v for s, table in chosen.items() for k, v in table.items()}
    return {k: v for k, v in flat.items() if v not in ("null", "")}


def _clients(rows: Sequence[Row]) -> dict[str, int]:
    """Training rows by client, of those that were ever asked. Under central privacy who that was is
    what is protected, and a card is published."""
    return {row["client"]: row["examples"] for row in rows if "examples" in row}


def _scores(rounds: Sequence[report.Row], task: str, local: bool) -> dict[str, str]:
    """The last round's, in words."""
    said = SCORES | (LOCAL if local and rounds and rounds[-1]["round"] else {})
    last = dict(rounds[-1]) if rounds else {}
    if task == "instruction":
        last["perplexity"] = report.perplexity(last.get("test_loss"))
    return {
        words: report.number(last[name], 4)
        for name, words in said.items()
        if last.get(name) is not None
    }
