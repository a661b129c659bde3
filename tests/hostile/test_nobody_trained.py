"""Promise: a run in which no client's update was used failed, says why, and exits with 1."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage

import strategies
from fedlora import cli, settings, wire
from fedlora.errors import Failed, UserError
from fedlora.runs import RunDir
from fedlora.wire import Parcel
from server import app as server_app
from server.events import opening
from server.flower import Status
from server.submit import Listener, _why
from simulations import results
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from tests.federation import Meddler, Watch, World, federate

SHORT = {"run__rounds": 2, "train__steps": 1}


def refuse(rounds: set[str]) -> Callable[[FlowerMessage], FlowerMessage]:
    """Every client fails in these rounds."""

    def meddle(reply: FlowerMessage) -> FlowerMessage:
        about = reply.metadata
        if about.message_type == "train" and about.group_id in rounds:
            reply.content = wire.pack(Parcel({"status": "error", "reason": "the disk is full"}))
        return reply

    return meddle


def spoil(reply: FlowerMessage) -> FlowerMessage:
    """Every update is dropped."""
    if reply.metadata.message_type == "train":
        parcel = wire.unpack(reply.content)
        parcel.tensors = {k: t / 0 for k, t in parcel.tensors.items()}
        reply.content = wire.pack(parcel)
    return reply


@pytest.mark.parametrize(
    ("meddle", "why"), [(refuse({"1", "2"}), "the disk is full"), (spoil, "is not finite")]
)
def test_it_fails_with_the_reasons(
    world: World, tmp_path: Path, meddle: Callable[[FlowerMessage], FlowerMessage], why: str
) -> None:
    """Failed or dropped; its metrics are there to look at. Resumed, with nothing left to do, it
    has still failed."""
    with pytest.raises(Failed, match=f"client books: .*{why}.*client films: "):
        federate(world, tmp_path, "fedit", grid=Meddler(meddle), **SHORT)
    assert RunDir.open("run", str(tmp_path)).rounds() == [1, 2]
    with pytest.raises(Failed, match=why):
        federate(world, tmp_path, "fedit", resume=True, **SHORT)


def test_one_round_that_came_to_something_is_enough(world: World, tmp_path: Path) -> None:
    """Also where it was before a restart; a run that failed and trains when it is resumed is
    well. The round that came to nothing is noted, and so is why."""
    watch = Watch()
    ran = federate(world, tmp_path, "fedit", grid=Meddler(refuse({"2"})), watch=watch, **SHORT)
    assert any("round 2: 0 usable updates" in note for note in watch.notes)
    assert (2, "train", "books", "the disk is full") in watch.reasons
    assert [row["clients"] for row in ran.rows()[1:]] == [3, 0]
    given = {**SHORT, "run__rounds": 3}
    federate(world, tmp_path, "fedit", grid=Meddler(refuse({"3"})), resume=True, **given)
    with pytest.raises(Failed):
        federate(world, tmp_path / "b", "fedit", grid=Meddler(refuse({"1", "2"})), **SHORT)
    federate(world, tmp_path / "b", "fedit", resume=True, **given)


def test_too_few_in_every_round_are_none(world: World, tmp_path: Path) -> None:
    """Updates that min_replies kept out changed nothing."""

    def one(reply: FlowerMessage) -> FlowerMessage:
        return spoil(reply) if reply.metadata.src_node_id == 2 else reply

    with pytest.raises(Failed, match=r"run\.min_replies"):
        federate(world, tmp_path, "fedit", grid=Meddler(one), run__min_replies=3, **SHORT)


def test_under_central_privacy_nobody_is_named(world: World, tmp_path: Path) -> None:
    """That nobody's update was used is said, and no more."""
    watch = Watch()
    given = {**SHORT, "privacy__mode": "central", "privacy__epsilon": 20.0}
    with pytest.raises(Failed) as found:
        federate(world, tmp_path, "fedit", watch=watch, grid=Meddler(spoil), **given)
    assert not any(name in str(found.value) for name in ("books", "films", "shops", "finite"))


def failing_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("clients.participant._assemble", fail)


def tree(world: World, tmp_path: Path) -> dict[str, Any]:
    return world.tree(tmp_path, {"strategy.name": "fedit", "run.rounds": 1, "train.steps": 1})


@pytest.mark.parametrize("command", [["run"], ["compare", "--strategies", "fedit"]])
def test_the_command_exits_with_1(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    """`fedlora run` and `fedlora compare`, with the reason on standard error."""
    failing_clients(monkeypatch)
    more = ["--no-baselines"] if command[0] == "compare" else []
    path = tmp_path / "given.toml"
    path.write_text(tomli_w.dumps(tree(world, tmp_path)))
    monkeypatch.setattr(sys, "argv", ["fedlora", *command, *more, str(path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1 and "the disk is full" in capsys.readouterr().err


def test_the_server_app_fails_and_submit_says_why(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`flwr run .` and `fedlora submit`: the ServerApp raises, so that Flower marks the run as
    failed, and tells the reason as an event that submit shows."""
    failing_clients(monkeypatch)
    config, _ = settings.resolve(tree(world, tmp_path), strategies.load)
    monkeypatch.setenv("FEDLORA_RUNS", str(tmp_path / "server"))
    flat = settings.to_flat(config)
    for more in ({"submit.run": "one"}, {}):
        grid = InProcessGrid(config, 3, tmp_path / "clients", Pool(0, 1))
        context = Context(1, 1, {}, RecordDict(), {**flat, **more})
        with pytest.raises(Failed, match="the disk is full"):
            server_app.main(grid, context)
        if more:
            listener = Listener(Watch(), None)  # type: ignore[arg-type]
            for line in capsys.readouterr().out.splitlines():
                if opening(line) or '"kind": "error"' in line:
                    listener.hear(line)
            status = Status("finished:failed", "")
            assert "the disk is full" in _why(listener, status)


def test_nothing_leaves_it_as_if_it_were_a_result(world: World, tmp_path: Path) -> None:
    """Neither adapter nor curves; export refuses, though checkpoints are kept to look at; a score
    is said to be the base's."""
    with pytest.raises(Failed, match="no client's update was used"):
        federate(world, tmp_path, "fedit", train__lr=1e30, data__test=0.2, **SHORT)
    run = RunDir.open("run", str(tmp_path))
    assert run.rounds() == [1, 2]
    assert not {"adapter", "curves.png"} & {p.name for p in run.path.iterdir()}
    with pytest.raises(UserError, match=r"no client's update was used .*log\.txt says why"):
        results.loaded(run, None)


def test_a_change_that_the_wire_rounds_away_is_none(world: World, tmp_path: Path) -> None:
    """In fp32 it arrives; in bf16 the server would get back what it sent."""
    given = {**SHORT, "run__rounds": 1, "train__lr": 1e-6, "train__optimizer": "sgd"}
    given |= {"adapter__head": "frozen", "adapter__init": "pissa"}
    federate(world, tmp_path / "a", "fedit", **given)
    with pytest.raises(Failed, match=r"moved no weight by as much as run\.wire = bf16"):
        federate(world, tmp_path / "b", "fedit", run__wire="bf16", **given)
