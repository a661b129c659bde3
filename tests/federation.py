"""A whole federation in about a second: a two-layer BERT, 190 rows of three domains, in process.

Words decide the label, each domain has its own words beside the common ones, and the clients have
90, 60 and 40 rows, so that means are uneven. Shapes: query (32, 32), intermediate.dense (48, 32).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import strategies
from fedlora import settings, wire
from fedlora.config import Config
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.strategy import Strategy
from fedlora.streams import forked, stream
from fedlora.tensors import Tensors, module_of
from fedlora.wire import Parcel
from server.loop import Coordinator
from simulations.grid import InProcessGrid
from simulations.pool import Pool

ROWS = {"books": 90, "films": 60, "shops": 40}
WORDS = {
    domain: {label: [f"{domain[0]}{label}{i}" for i in range(2)] for label in ("bad", "good")}
    for domain in ("common", *ROWS)
}
FILLERS = [f"filler{i}" for i in range(12)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.25,
}
TARGETS = ["query", "intermediate.dense"]


@dataclass(frozen=True)
class World:
    """A model and rows on disk."""

    model: Path
    data: Path

    def tree(self, root: Path, given: Mapping[str, Any]) -> settings.Tree:
        """Settings by dotted key over small defaults; runs are in `root`."""
        small = {
            "run": {"rounds": 3, "dir": str(root), "name": "run"},
            "model": {"name": str(self.model)},
            "adapter": {"rank": 4, "target_modules": TARGETS},
            "data": {"name": str(self.data), "public": 16, "max_length": 16},
            "train": {"steps": 4, "batch_size": 8, "lr": 0.01},
            "simulation": {"workers": 0},
        }
        nested: settings.Tree = {}
        for key, value in given.items():
            section, _, name = key.partition(".")
            nested.setdefault(section, {})[name] = value
        return settings.merged(small, nested)


def make(root: Path, dropout: float = 0.1) -> World:
    """Write the model, its tokenizer and the rows into a new folder."""
    vocabulary = [*SPECIAL, *FILLERS, *(w for d in WORDS.values() for x in d.values() for w in x)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(root / "model")
    with forked(0, "tests"):
        drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = BertConfig(vocab_size=len(vocabulary), **SIZES, **drop)
        BertModel(config).save_pretrained(root / "model")
    rows = [row(domain, i) for domain, count in ROWS.items() for i in range(count)]
    (root / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return World(root / "model", root / "rows.jsonl")


def row(domain: str, i: int) -> dict[str, str]:
    """Three words that tell the label, one of them the domain's own, among three that do not."""
    draw = stream(0, "tests", domain, i)
    label = ("bad", "good")[i % 2]
    tell = [WORDS[d][label][_pick(2, draw)] for d in ("common", "common", domain)]
    words = tell + [FILLERS[_pick(12, draw)] for _ in range(3)]
    order = torch.randperm(len(words), generator=draw).tolist()
    return {"text": " ".join(words[j] for j in order), "label": label, "domain": domain}


def _pick(n: int, draw: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=draw))


class Crash(Exception):
    """The process ends here."""


class Watch(Observer):
    """Notes, and (round, phase, client, reason) of failures; does `at` a round's phase ("start",
    "train", "aggregate", "evaluate", "committed") what it is given."""

    def __init__(self, at: Callable[[int, str], None] = lambda round, phase: None) -> None:
        self.notes: list[str] = []
        self.reasons: list[tuple[int, str, str, str]] = []
        self.at = at

    def phase(self, round: int, name: str, clients: int) -> None:
        self.at(round, name)

    def client(
        self, round: int, phase: str, client: str, loss: float | None, reason: str | None = None
    ) -> None:
        if reason:
            self.reasons.append((round, phase, client, reason))

    def round(self, row: Mapping[str, Any]) -> None:
        self.at(row["round"], "committed")

    def note(self, text: str) -> None:
        self.notes.append(text)


def crash_at(*when: object) -> Watch:
    """A watch that ends the process at this (round, phase)."""

    def at(*now: object) -> None:
        if now == when:
            raise Crash(f"at {now}")

    return Watch(at)


@dataclass
class Ran:
    """A federation that ran, for inspection."""

    run: RunDir
    resident: Resident
    watch: Watch = field(default_factory=Watch)

    @property
    def config(self) -> Config:
        return self.resident.config

    @property
    def strategy(self) -> Strategy:
        return self.resident.strategy

    def state(self, number: int) -> Tensors:
        return load_file(self.run.round(number) / "state.safetensors")

    def rows(self, kind: str = "round") -> list[dict[str, Any]]:
        lines = self.run.metrics.read_text().splitlines()
        return [r for r in map(json.loads, lines) if r["kind"] == kind]

    def row(self, number: int, client: str = "") -> dict[str, Any]:
        kind = "client" if client else "round"
        (found,) = [
            r
            for r in self.rows(kind)
            if r["round"] == number and (not client or r["client"] == client)
        ]
        return found


def federate(
    world: World,
    root: Path,
    method: str = "fedex",
    *,
    watch: Watch | None = None,
    pool: Pool | None = None,
    grid: Callable[[InProcessGrid], Any] = lambda grid: grid,
    resume: bool = False,
    **given: Any,
) -> Ran:
    """Run a federation as `simulate` does, without its closing pictures.

    Args:
        grid: wraps the grid, to play tricks on its messages.
        given: settings with `__` for the dot, as in run__rounds=2.
    """
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    tree = world.tree(root, {"strategy.name": method, **flat})
    config, strategy = settings.resolve(tree, strategies.load)
    resident = Resident(config, strategy)
    run = RunDir.open("run", str(root)) if resume else RunDir.create(config)
    watch = watch or Watch()
    clients = len(resident.federation.clients)
    inner = InProcessGrid(config, clients, run.path / "clients", pool or Pool(0, 1))
    Coordinator(grid(inner), resident, run, watch).serve()
    return Ran(run, resident, watch)


def same(one: Tensors, other: Tensors) -> bool:
    """The same names and the same bits."""
    return one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items())


@dataclass(frozen=True)
class Kept:
    """One client's files of a round that was run with run.keep = "updates"."""

    client: str
    weight: float
    rank: int
    scale: float
    sent: Tensors
    update: Tensors


def kept(ran: Ran, number: int) -> list[Kept]:
    """What was sent and received in a round, from the files alone."""
    found = []
    for path in sorted(ran.run.round(number).glob("update-*.safetensors")):
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        sent = load_file(path.with_name(path.name.replace("update-", "sent-")))
        rank, weight, scale = int(facts["rank"]), float(facts["weight"]), float(facts["scale"])
        found.append(Kept(facts["client"], weight, rank, scale, sent, load_file(path)))
    return found


def delta(tensors: Tensors, module: str, scale: float) -> torch.Tensor:
    """W - W0 of a module from the equation, (m, n) in float64: s B R A + P Q + D."""
    t = {k.rpartition(".")[2]: v.double() for k, v in tensors.items() if module_of(k) == module}
    product = t["B"] @ t["R"] if "R" in t else t["B"]
    total = scale * product @ t["A"]
    if "P" in t:
        total = total + t["P"] @ t["Q"]
    return total + t["D"] if "D" in t else total


class Meddler:
    """A grid whose replies pass through `meddle(reply)`, which may change or replace them; None
    keeps one back for ever, and a list is what is delivered in its place."""

    def __init__(self, meddle: Callable[[Message], Any]) -> None:
        self.meddle = meddle
        self.pushed: list[Message] = []
        self.grid: Any = None

    def __call__(self, grid: InProcessGrid) -> "Meddler":
        self.grid = grid
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self.pushed += batch
        return self.grid.push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        out: list[Message] = []
        for reply in self.grid.pull_messages(message_ids):
            found = self.meddle(reply)
            out += found if isinstance(found, list) else [found] if found is not None else []
        return out


def meddled(kind: str, node: int, change: Callable[[Parcel], Any], round: int = 2) -> Meddler:
    """Changes the parcel of one node's replies of a kind in a round."""

    def meddle(reply: Message) -> Message:
        about = reply.metadata
        if (about.message_type, about.src_node_id, about.group_id) == (kind, node, str(round)):
            parcel = wire.unpack(reply.content)
            change(parcel)
            reply.content = wire.pack(parcel)
        return reply

    return Meddler(meddle)
