"""A server that has a node run its template, tokenizer or model over rows, and asks by whether that
works."""

import contextlib
import io
import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import strategies
from clients import app, node, ready
from clients.node import Superlink
from clients.owner import Owner, Refused
from clients.trainer import handle
from fedlora import settings, wire
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.models import packaged
from fedlora.orders import Order
from fedlora.privacy.training import Updates
from fedlora.tasks import usable
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


@pytest.fixture
def texts(world: World, tmp_path: Path) -> Callable[..., Settings]:
    """A node's settings, of labelled rows, the last of which has another text or label."""

    def make(**last: str) -> Settings:
        lines = [json.loads(x) for x in world.data.read_text().splitlines() if '"books"' in x]
        rows = [{"text": x["text"], "label": x["label"]} for x in lines]
        path = written(tmp_path / "texts.jsonl", [*rows[:-1], rows[-1] | last])
        return at(tmp_path, path, world.model)

    return make


@pytest.fixture
def talks(tmp_path: Path) -> Callable[..., Settings]:
    """A node's settings, of conversations, the first of which has another question."""
    model = talk.save(tmp_path / "talks")

    def make(question: str = "what colour has thing1", **sizes: Any) -> Settings:
        rows = [json.loads(x) for x in talk.rows(tmp_path / "all.jsonl").read_text().splitlines()]
        kept = [{k: row[k] for k in ("instruction", "output")} for row in rows]
        path = written(tmp_path / "talks.jsonl", [kept[0] | {"instruction": question}, *kept[1:]])
        return at(tmp_path, path, model)

    return make


def at(root: Path, data: Path, model: Path) -> Settings:
    state = str(root / "state")
    return {"client": "me", "data": str(data), "model": str(model), "state-dir": state}


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


# Templates


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("template", [SPY, ASK])
def test_no_template_of_a_run_sees_a_row(
    talks: Callable[..., Settings], tmp_path: Path, private: bool, template: str
) -> None:
    """Promise: a node renders its owner's template or its model's, and never the run's. What a run
    asks for is named by its digest, and nothing of a row is in the answer."""
    given: Settings = {"model__chat_template": template}
    if not private:
        given["privacy__epsilon"] = None
    answers = []
    for question in (f"my pin is {PIN}", "my pin is 1111"):
        own = talks(question)
        found = asked(own, run(tmp_path, own, **given))
        assert found.facts["status"] == "error" and "SHA-256" in found.facts["reason"]
        answers.append(found.facts)
    assert answers[0] == answers[1] and PIN not in str(answers)


def test_an_owner_s_template_is_used_whatever_the_run_has(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """The same text is allowed, another is not, and none is the owner's."""
    own = talks() | {"chat-template": str(tmp_path / "own.jinja")}
    mine = talk.TEMPLATE.replace("|> {{", "|>  {{")
    (tmp_path / "own.jinja").write_text(mine)
    owner = Owner.read(own)
    for asks in (None, mine):
        flat = run(tmp_path, own, model__chat_template=asks)
        owner.allow(flat, 0)
        assert owner.applied(owner.resolve(flat)[0]).model.chat_template == mine
    with pytest.raises(Refused, match="chat-template"):
        owner.allow(run(tmp_path, own, model__chat_template=ASK), 0)


def test_a_template_that_the_owner_has_not_is_never_rendered(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """Nor by whoever passes the owner's refusal over."""
    own = talks()
    context = Context(1, 1, own, RecordDict(), run(tmp_path, own, model__chat_template=SPY))
    assert app.resident(context).task.tokenizer.chat_template == talk.TEMPLATE


# Models and tokenizers


@pytest.mark.parametrize(
    ("mine", "asks", "fine"),
    [
        ({}, {"model.name": "evil/model"}, False),
        ({}, {"model.name": "evil/model", "model.revision": COMMIT}, False),
        ({"model": "org/model"}, {}, False),
        ({"model": "org/model", "revision": COMMIT}, {}, True),
        ({"model": "/models/own"}, {}, True),
        ({}, {}, True),  # the default, which a package holds
        ({}, {"model.revision": COMMIT}, False),  # of the hub, and no package's
        ({}, {"model.gguf": "evil.gguf"}, False),
    ],
    ids=str,
)
def test_under_a_budget_model_and_tokenizer_are_the_owner_s(
    mine: Settings, asks: Settings, fine: bool
) -> None:
    """Promise: with epsilon a run names no files that read rows."""
    assert packaged(Config().model.name) is not None
    owner = Owner.read({"client": "me", "data": "rows.csv", "epsilon": 3, **mine})
    if fine:
        owner.allow({"privacy.epsilon": 1.0, **asks}, 0)
        own = owner.applied(owner.resolve({"privacy.epsilon": 1.0, **asks})[0]).model
        assert (own.name, own.revision) == (
            mine.get("model", Config().model.name),
            mine.get("revision"),
        )
    else:
        with pytest.raises(Refused, match="under a budget a model of its own"):
            owner.allow({"privacy.epsilon": 1.0, **asks}, 0)


def test_a_model_that_no_package_here_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone is no model that the owner installed."""
    monkeypatch.setattr("fedlora.models.PACKAGED", {Config().model.name: ("no_such_package", "")})
    owner = Owner.read({"client": "me", "data": "rows.csv", "epsilon": 3})
    with pytest.raises(Refused, match="an installed package holds"):
        owner.allow({"privacy.epsilon": 1.0}, 0)


def test_a_commit_is_a_whole_one() -> None:
    """A branch, a tag or half a hash can become another model."""
    for wrong in ("main", "v1", COMMIT[:39], COMMIT.upper()):
        with pytest.raises(UserError, match="revision"):
            Owner.read({"model": "org/model", "revision": wrong})
    with pytest.raises(UserError, match="revision needs model"):
        Owner.read({"revision": COMMIT})


# Whether it works


@pytest.mark.parametrize("more", [{}, {"epsilon": 3}], ids=["the run's ε", "the owner's ε"])
@pytest.mark.parametrize(
    ("last", "given"),
    [
        ({"label": "ill"}, {"data__labels": ["bad", "good"]}),
        ({"text": "common " * 23}, {"data__labels": ["bad", "good"], "data__max_length": 48}),
        ({"label": "ill"}, {"data__labels": ["bad", "good"], "data__partition": "shards"}),
    ],
    ids=["a label", "a length", "a label in shards"],
)
def test_a_private_run_works_whatever_is_in_a_row(
    texts: Callable[..., Settings],
    tmp_path: Path,
    last: Settings,
    given: Settings,
    more: Settings,
) -> None:
    """Promise: in a private run that works on a node, it works whatever the rows are: one that
    cannot be used counts, with no gradient. Nothing but paid-for tensors and counts differs."""
    said = []
    for change in ({}, last):
        own = texts(**change) | more
        flat = run(tmp_path, own, **given)
        said += [asked(own, flat).facts, ordered(own, flat, len(said)).facts]
    assert said[0] == said[2] and said[0]["status"] == "ok"
    assert said[1]["status"] == said[3]["status"] == "ok"


def test_a_conversation_that_the_template_refuses_counts_without_a_gradient(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """The owner's own template, or the model's, may not take a row either."""
    own = talks(f"my pin is {PIN}") | {"chat-template": str(tmp_path / "own.jinja")}
    (tmp_path / "own.jinja").write_text(ASK.replace("x", "") + talk.TEMPLATE)
    flat = run(tmp_path, own)
    facts = [asked(own, flat).facts]
    assert ordered(own, flat).facts["status"] == "ok"
    resident = app.resident(Context(1, 1, own, RecordDict(), flat))
    assert list(resident.faults) == [0]
    table = resident._table
    batch = resident.task.batch(table, [0, 1])
    losses = resident.task.losses(resident.adapter.model, batch)
    assert losses[0] == 0 and losses[1] > 0
    right, _ = resident.task.outcomes(resident.adapter.model, batch)
    assert right[0] == 0
    own = talks("my pin is 1111") | {"chat-template": str(tmp_path / "own.jinja")}
    facts.append(asked(own, flat).facts)
    assert facts[0] == facts[1] and facts[0]["status"] == "ok"


def test_a_token_that_the_model_does_not_know_is_no_question(
    texts: Callable[..., Settings], tmp_path: Path
) -> None:
    """A tokenizer with one word more than the model, and the word in one row."""
    own = texts(text="common extraword")
    flat = run(tmp_path, own)
    context = Context(1, 1, own, RecordDict(), flat)
    resident = app.resident(context)
    words = len(resident.task.tokenizer)
    resident.task.tokenizer.add_tokens(["extraword"])
    assert resident.task.tokenizer("extraword")["input_ids"][1] == words
    assert ordered(own, flat).facts["status"] == "ok"
    (fault,) = resident.faults.values()
    assert "does not know" in fault
    assert int(resident._table.inputs["input_ids"].max()) < words


def test_the_gradient_of_a_blank_row_is_zero(
    texts: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is trained: every row's own gradient, as it is clipped, of a table of blank rows."""
    own = texts()
    flat = run(tmp_path, own)
    resident = app.resident(Context(1, 1, own, RecordDict(), flat))
    seen: list[float] = []
    take = Updates.take

    def looked(self: Updates, last: bool) -> None:
        seen.extend(float(g.abs().max()) for g in self._updater.grad_samples if g.numel())
        take(self, last)

    monkeypatch.setattr(Updates, "take", looked)
    table, _ = usable.encode(resident.task, resident.federation.rows, vocabulary=0)
    resident._tried = (table, {})
    assert ordered(own, flat).facts["status"] == "ok"
    assert seen and not any(seen)


def test_that_a_model_reads_so_long_a_row_is_tried_on_nobody_s(
    texts: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would ask whether there is a row longer than the model has places: it fails
    whatever the rows are, as short as they may be."""
    monkeypatch.setattr("fedlora.pretrained.Pretrained.longest", lambda self, asked, _: asked)
    own = texts()
    found = asked(own, run(tmp_path, own, data__max_length=48))
    assert found.facts["status"] == "error"
    assert asked(own, run(tmp_path, own, data__max_length=24)).facts["status"] == "ok"


@pytest.mark.parametrize("memory", [1e-6, 1e6])
def test_a_run_says_nothing_of_a_node_s_machine(
    texts: Callable[..., Settings], tmp_path: Path, memory: float
) -> None:
    """How large its passes are is not the run's to say: it would ask for the longest row."""
    own = texts()
    flat = run(tmp_path, own, simulation__memory=memory, simulation__copies=3)
    resident = app.resident(Context(1, 1, own, RecordDict(), flat))
    assert resident.most is None and resident.config.simulation.copies is None


def test_a_form_that_the_run_says_is_no_question(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """Nor whether rows are in it."""
    own = talks()
    told = [
        asked(own, run(tmp_path, own, data__format=form)).facts for form in ("auto", "sharegpt")
    ]
    assert told[0] == told[1] and told[0]["status"] == "ok"


# Before the node joins


@pytest.mark.parametrize(
    ("last", "says"),
    [({"text": ""}, "row 90 has no value"), ({"label": ""}, "row 90 has no value"), ({}, "")],
    ids=["no text", "no label", "whole"],
)
def test_rows_are_looked_at_before_a_node_with_a_budget_joins(
    texts: Callable[..., Settings], last: Settings, says: str
) -> None:
    """Promise: under epsilon a node starts with rows that can be used alone."""
    owner = Owner.read(texts(**last) | {"epsilon": 3})
    if not says:
        ready.verify(owner)
        return
    with pytest.raises(UserError, match=says):
        ready.verify(owner)


def test_a_template_is_tried_on_all_rows_before_a_node_with_a_budget_joins(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """Its owner is told which row it does not take."""
    own = talks(f"my pin is {PIN}") | {"chat-template": str(tmp_path / "own.jinja"), "epsilon": 3}
    (tmp_path / "own.jinja").write_text(talk.TEMPLATE)
    ready.verify(Owner.read(own))
    (tmp_path / "own.jinja").write_text(ASK)
    with pytest.raises(UserError, match=r"row 1 of .* cannot become tokens"):
        ready.verify(Owner.read(own))


def test_tokens_are_held_against_the_model_before_a_node_with_a_budget_joins(
    texts: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is that the owner chose a model at all."""
    own = texts() | {"epsilon": 3}
    few = torch.nn.Embedding(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr("peft.PeftModel.get_input_embeddings", lambda _: few, raising=False)
        with pytest.raises(UserError, match=r"row 1 of .* does not know"):
            ready.verify(Owner.read(own))
    monkeypatch.setattr("fedlora.models.PACKAGED", {})
    del own["model"]
    with pytest.raises(UserError, match="epsilon needs model"):
        ready.verify(Owner.read(own))


def test_a_node_with_a_budget_does_not_start_over_rows_that_cannot_be_used(
    texts: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, before it becomes Flower's."""

    def called(command: list[str], **_: Any) -> SimpleNamespace:
        said = io.StringIO()
        monkeypatch.setattr("sys.argv", command[3:])
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
            runpy.run_module(command[3], run_name="__main__")
        return SimpleNamespace(returncode=end.value.code, stdout=said.getvalue())

    monkeypatch.setattr("subprocess.run", called)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it joined"))
    own, before = texts(text="") | {"epsilon": 3}, os.umask(0o077)  # which the command sets
    try:
        with pytest.raises(UserError, match="row 90 has no value"):
            node.start(own, Superlink("host:1", insecure=True))
    finally:
        os.umask(before)
