"""A node owner's settings, and what they allow a run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.owner import MB, Owner, Refused, owner_of
from fedlora import settings
from fedlora.config import MINILM, Config
from fedlora.errors import UserError

FULL: dict[str, Any] = {
    "client": "north",
    "data": "/data/rows.csv",
    "text": "body",
    "label": "mood",
    "prompt": "ask",
    "context": "see",
    "response": "say",
    "rank": 4,
    "device": "cuda:0,2",
    "parallel": "fsdp",
    "threads": 2,
    "state-dir": "/state",
    "model": "owner/mini",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "chat-template": "/models/turns.jinja",
    "methods": "fedit, mine:Mine",
    "max-rounds": 10,
    "max-total-rounds": 99,
    "max-steps": 20,
    "max-payload": 1.5,
    "epsilon": 3,
    "delta": 1e-5,
    "idle": 60,
    "partition-id": 0,
    "num-partitions": 2,
}


def owner(**given: Any) -> Owner:
    return Owner.read({k.replace("_", "-"): v for k, v in given.items()})


def run(**given: Any) -> dict[str, Any]:
    """A flat run-config, as Flower carries it."""
    return {k.replace("__", ".", 1): v for k, v in given.items()}


def test_every_setting_is_read() -> None:
    """As people write them, with dashes."""
    read = Owner.read(FULL)
    assert (read.client, read.state_dir, read.rank) == ("north", Path("/state"), 4)
    assert (read.methods, read.max_payload, read.epsilon) == (("fedit", "mine:Mine"), 1.5, 3.0)
    assert (read.devices, owner().devices) == (("cuda:0", "cuda:2"), ("cpu",))
    assert {k.replace("_", "-") for k in Owner.model_fields} == FULL.keys()


def test_a_number_may_be_a_clients_id() -> None:
    """`client=3` is the id "3"; whoever says nothing has the defaults."""
    assert owner(client=3).client == "3"
    assert (owner().max_rounds, owner().max_steps, owner().max_payload) == (1000, 10000, 4000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max-step": 3}, r"max-step: no such key; did you mean 'max-steps'\?"),
        ({"max_rounds": 3}, "did you mean 'max-rounds'"),
        ({"max-rounds": 0}, "max-rounds = 0: .*greater than 0"),
        ({"max-steps": "many"}, "max-steps = 'many': .*integer"),
        ({"max-payload": -1}, "max-payload = -1: "),
        ({"rank": -1}, "rank = -1: "),
        ({"idle": 0}, "idle = 0: "),
        ({"device": "gpu"}, "device = 'gpu': "),
        ({"device": "cpu,cuda:0"}, "device = 'cpu,cuda:0': "),
        ({"device": "cuda:0,1,0"}, "cuda:0,1,0 has one of them twice"),
        ({"parallel": "tensor"}, "parallel = 'tensor': "),
        ({"device": "cuda:1", "parallel": "fsdp"}, "parallel = fsdp needs several devices"),
        ({"client": " "}, "client = ' ': "),
        ({"methods": " ,"}, "methods = ' ,': name at least one"),
        ({"client": "a", "data": "x.csv", "epsilon": 0}, "epsilon = 0: "),
        ({"client": "a", "data": "x.csv", "epsilon": float("inf")}, "epsilon = inf: "),
        ({"client": "a", "data": "x.csv", "epsilon": True}, "epsilon = True: no setting is true"),
        ({"client": "a", "epsilon": 1.0}, "epsilon needs data"),
        ({"data": "x.csv"}, "data needs client"),
        ({"client": "a", "data": "x.csv", "delta": 0.1}, "delta needs epsilon"),
        ({"client": "a", "data": "x.csv", "epsilon": 1.0, "delta": 1.0}, "delta = 1.0: "),
        ({"max-total-rounds": 0}, "max-total-rounds = 0: .*greater than 0"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(given: dict[str, Any], says: str) -> None:
    """With its value and what it may be."""
    with pytest.raises(UserError, match=says):
        Owner.read(given)


def test_a_simulations_partition_has_no_owner() -> None:
    """What Flower and our own grid tell of a partition; a setting of a person's makes an owner."""
    partition = {"partition-id": 0, "num-partitions": 2, "state-dir": "/state"}
    assert owner_of(partition) is None
    assert owner_of({}) == owner()
    assert owner_of({**partition, "client": "a"}) is not None
    with pytest.raises(UserError, match="clinet"):
        owner_of({**partition, "clinet": "a"})


def test_the_settings_are_read_without_torch() -> None:
    """A mistake is said at once, and not after seconds of imports."""
    code = "import sys; from clients.owner import Owner; Owner.read({'client': 'a'})"
    check = "assert not {'torch', 'flwr', 'datasets', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True)


MINE = {"client": "a", "data": "/data/rows.csv"}
PRIVATE = {**MINE, "epsilon": 3.0}
SHARES = {"device": "cuda:0,1", "parallel": "fsdp"}
LABELS = {"data.labels": '["bad", "good"]'}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {}),
        ({}, settings.to_flat(Config())),
        ({}, {"submit.run": "name", "submit.resume": False}),
        ({}, {"data.name": "definitions"}),
        ({}, {"model.name": MINILM}),
        ({}, {"model.name": "prajjwal1/bert-tiny"}),
        ({}, {"run.rounds": 1000, "train.steps": 10000}),
        ({"model": "/mine"}, {"model.name": "/theirs"}),
        (SHARES, {"model.quantize": "4bit"}),
        ({**SHARES, "parallel": "ddp"}, {"model.quantize": "8bit"}),
        (MINE, {"data.name": "/theirs"}),
        ({**MINE, "label": "mood"}, {"data.label": "diagnosis"}),
        ({"methods": "fedsb"}, {"strategy.name": "fedsb", "strategy.init": "clients"}),
        (PRIVATE, {**LABELS, "privacy.epsilon": 8.0}),
        (PRIVATE, {**LABELS, "privacy.noise_multiplier": 1.0}),
    ],
    ids=str,
)
def test_an_ordinary_run_is_allowed(given: dict[str, Any], asked: dict[str, Any]) -> None:
    """So is what the owner settles otherwise, whatever the run says of it."""
    Owner.read(given).allow(asked, 10)


@pytest.mark.parametrize(
    ("given", "asked", "says"),
    [
        ({}, {"run.rounds": 1001}, "allows 1000 rounds; the run asks for 1001"),
        ({}, {"run.rounds": "1001"}, "1000 rounds"),
        (SHARES, {"model.quantize": "8bit"}, "the run asks for model.quantize = 8bit"),
        ({}, {"run": '{"rounds": 1001}'}, "1000 rounds"),
        ({}, {"train.steps": 10001}, "allows 10000 steps"),
        ({}, {"strategy.name": "os:path"}, "strategy.name = os:path"),
        ({}, {"strategy": '{"name": "os:path"}'}, "strategy.name = os:path"),
        ({}, {"strategy.name": "strategies.fedex:FedEx"}, "strategy.name = strategies.fedex"),
        ({"methods": "fedit"}, {}, "allows fedit; the run asks for strategy.name = fedex"),
        ({}, {"data.name": "/etc/passwd"}, "data.name = /etc/passwd"),
        ({}, {"data.name": "org/name"}, "data.name = org/name"),
        ({"client": "a"}, {"data": '{"name": "/secret.csv"}'}, "data.name = /secret.csv"),
        (MINE, {"data.label": "diagnosis"}, "the column 'label' alone; .* data.label = diagnosis"),
        (MINE, {"data.response": "notes"}, "the column 'response' alone; .* data.response = notes"),
        (MINE, {"data.context": "notes"}, "the column 'context' alone; .* data.context = notes"),
        (MINE, {"data.text": "notes"}, "the column 'text' alone"),
        ({}, {"model.name": "/models/theirs"}, "model.name = /models/theirs"),
        ({}, {"model.name": "../theirs"}, "model.name = ../theirs"),
        ({}, {"model.name": "~/theirs"}, "model.name = ~/theirs"),
        ({}, {"model.name": "theirs"}, "model.name = theirs"),
        ({}, {"model.name": "org/a/b"}, "model.name = org/a/b"),
        (PRIVATE, {}, "local DP-SGD alone"),
        (PRIVATE, {"privacy.epsilon": 1.0, "privacy.mode": "central", "strategy.name": "fedit"},
         "asks for central noise"),
        (PRIVATE, {"privacy.epsilon": 1.0, "privacy.insecure_seed": 0}, "secret noise alone"),
    ],
    ids=str,
)  # fmt: skip
def test_what_an_owner_does_not_allow_is_refused(
    given: dict[str, Any], asked: dict[str, Any], says: str
) -> None:
    """In whatever way the run's configuration writes it."""
    with pytest.raises(Refused, match=says):
        Owner.read(given).allow(asked, 10)


def test_a_local_folder_that_looks_like_a_hub_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does not choose among this machine's folders."""
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"model\.name = org/name"):
        owner().allow({"model.name": "org/name"}, 10)


@pytest.mark.parametrize("init", ["clients", "sketch"])
def test_an_account_lets_no_gradients_out(init: str) -> None:
    """With or without privacy in the run's configuration."""
    asked = {"strategy.name": "fedsb", "strategy.init": init}
    with pytest.raises(UserError, match="local DP-SGD alone"):
        Owner.read(PRIVATE).allow(asked, 10)
    with pytest.raises(UserError, match="gradients of clients' rows"):
        Owner.read(PRIVATE).allow({**asked, "privacy.epsilon": 1.0}, 10)


def test_a_message_that_is_too_large_is_refused() -> None:
    """max-payload is in millions of bytes."""
    owner(max_payload=2).allow({}, 2 * MB)
    with pytest.raises(Refused, match="allows 2 MB; the run asks for 2"):
        owner(max_payload=2).allow({}, 2 * MB + 10**5)


def test_a_method_that_is_not_allowed_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module may do anything when imported; one that is listed is."""
    (tmp_path / "theirs_fx.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\n"
        "from fedlora import Strategy\nclass Theirs(Strategy): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    asked = {"strategy.name": "theirs_fx:Theirs"}
    with pytest.raises(Refused, match="theirs_fx:Theirs"):
        owner().allow(asked, 10)
    assert not (tmp_path / "imported").exists()
    owner(methods="fedex,theirs_fx:Theirs").allow(asked, 10)
    assert (tmp_path / "imported").exists()


def test_epochs_are_counted_over_the_nodes_rows() -> None:
    """As are rounds by the order: a run may go on longer than it said."""
    config, _ = owner().resolve(run(train__steps="null", train__epochs=3, train__batch_size=10))
    strict = owner(max_steps=30, max_rounds=5)
    strict.allow_rows(config, 100, 5)
    with pytest.raises(Refused, match="30 steps a round; the run asks for 33"):
        strict.allow_rows(config, 101, 5)
    with pytest.raises(Refused, match="5 rounds; the run asks for round 6"):
        strict.allow_rows(config, 100, 6)


def test_a_delta_that_protects_nobody_is_refused() -> None:
    """An account at a δ of the server's choosing would be none."""
    private = Owner.read(PRIVATE)
    for delta, fine in ((0.009, True), (0.01, False)):
        config, _ = private.resolve(run(privacy__epsilon=1.0, privacy__delta=delta))
        if fine:
            private.allow_rows(config, 100)
        else:
            with pytest.raises(Refused, match="not below 1/n"):
                private.allow_rows(config, 100)


@pytest.mark.parametrize(("run_epsilon", "least"), [(8.0, 3.0), (1.0, 1.0)])
def test_the_smaller_budget_counts(run_epsilon: float, least: float) -> None:
    """The noise is solved for what the owner allows, and no less is added than the run asks."""
    config, _ = Owner.read(PRIVATE).resolve(run(privacy__epsilon=run_epsilon))
    assert Owner.read(PRIVATE).applied(config).privacy.epsilon == least


def test_the_owner_settles_model_and_columns() -> None:
    """In place of the run's; the rest of its configuration stays."""
    plain = {k: v for k, v in FULL.items() if k not in ("revision", "chat-template")}
    given = Owner.read({**plain, "methods": "fedex", "model": "/models/mini"})
    config, _ = given.resolve(run(privacy__epsilon=1.0, data__label="diagnosis", train__steps=7))
    mine = given.applied(config)
    assert (mine.model.name, mine.data.text, mine.data.label) == ("/models/mini", "body", "mood")
    assert mine.train == config.train
    assert owner().applied(config) == config


def test_an_owners_folder_is_read_as_it_is() -> None:
    """The hub's revision, and the file of a repository, say nothing about a folder."""
    config, _ = owner().resolve(run(model__revision="v1", model__gguf="a.gguf"))
    assert owner(model="/mine").applied(config).model == config.model.model_copy(
        update={"name": "/mine", "revision": None, "gguf": None}
    )
    assert owner().applied(config).model == config.model


def test_an_owner_s_columns_are_those_of_conversations_too() -> None:
    """Whatever form the run says the rows are in."""
    given = owner(client="a", data="rows.csv", prompt="ask", response="say")
    config, _ = given.resolve(run(model__task="instruction", data__format="alpaca"))
    mine = given.applied(config).data
    assert (mine.format, mine.prompt, mine.context, mine.response) == (
        "columns",
        "ask",
        None,
        "say",
    )
