"""Promise: under central privacy nothing that a run leaves, shows or brings back tells who took
part in a round, or how many, nor any update before its noise."""

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import strategies
from fedlora import report, settings, wire
from fedlora.errors import UserError
from fedlora.page.collect import read
from fedlora.page.html import page
from fedlora.runs import RunDir
from fedlora.wire import Parcel
from server import app as server_app
from server.card import card
from server.delivery import Incoming, manifest, parts
from server.result import finish, tell
from simulations import compare
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from simulations.results import latest, made, speak
from tests.federation import Crash, Meddler, Ran, Watch, World, crash_at, federate, meddled

CENTRAL = {
    "privacy__mode": "central",
    "privacy__epsilon": 20.0,
    "run__rounds": 2,
    "train__steps": 1,
    "data__holdout": 0.2,
}
NAMES = ("books", "films", "shops")


class Everything(Watch):
    """All that the round loop tells whoever watches."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def begin(self, rounds: int, start: int) -> None:
        self.told.append((rounds, start))

    def phase(self, round: int, name: str, clients: int) -> None:
        self.told.append((round, name, clients))

    def client(self, *about: object) -> None:
        self.told.append(about)

    def round(self, row: Mapping[str, Any]) -> None:
        self.told.append(dict(row))

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module")
def everything(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Everything]:
    """A run in which one client fails, another is lost on the way, and all is tracked."""
    watch, root = Everything(), tmp_path_factory.mktemp("run")

    def fail(parcel: Parcel) -> None:
        parcel.facts.update(status="error", reason="no")

    grid = meddled("train", 2, fail, 1)
    given = {**CENTRAL, "run__track": ["tensorboard"], "run__keep": "all"}
    ran = federate(world, root, "fedit", watch=watch, grid=grid, **given)
    finish(ran.resident, ran.run, ran.state(2))
    return ran, watch


def test_nothing_that_is_told_names_or_counts_clients(everything: tuple[Ran, Everything]) -> None:
    """Events of the run, which go to whoever started it: no client, no count, no bytes."""
    _, watch = everything
    assert not any(name in str(watch.told) for name in NAMES)
    phases = [x for x in watch.told if isinstance(x, tuple) and len(x) == 3]
    assert len(phases) > 4 and {clients for _, _, clients in phases} == {0}
    for row in (x for x in watch.told if isinstance(x, dict)):
        assert not row.keys() & {
            "clients",
            "failed",
            "dropped",
            "bytes_up",
            "bytes_down",
            "seconds",
        }
        assert row["epsilon"] is not None


def test_no_file_that_is_brought_back_does(
    everything: tuple[Ran, Everything], tmp_path: Path
) -> None:
    """Every file of what is delivered: metrics, checkpoints, log, TensorBoard's, the card."""
    ran, _ = everything
    chosen = manifest(ran.run.path).files
    assert {"metrics.jsonl", "log.txt", "adapter/README.md"} <= chosen.keys()
    assert any(name.startswith("tensorboard/") for name in chosen)
    assert any(name.endswith("checkpoint.json") for name in chosen)
    for name in chosen:
        data = (ran.run.path / name).read_bytes()
        if name != "config.toml":  # which has the data's path
            assert not any(word.encode() in data for word in NAMES), name
        for word in (b"holder", b"manifest", b"bytes_up", b"bytes_down", b"clients/"):
            assert word not in data, (name, word)
    incoming = Incoming(tmp_path)
    incoming.expect({name: vars(about) for name, about in chosen.items()}, [])
    for part in parts(ran.run.path, chosen):
        incoming.accept(**part)
    shutil.copy(ran.run.path / "config.toml", tmp_path)  # the submitter's own
    brought = RunDir(tmp_path)
    assert latest(brought).round == 2 and latest(brought).memory == {}
    assert speak(made(brought), brought, None) == 2
    with pytest.raises(UserError, match="stays on the server"):
        speak(made(brought), brought, "films")
    with pytest.raises(UserError, match="resume it there"):
        Resumed(brought, ran)


def Resumed(brought: RunDir, ran: Ran) -> None:
    """Goes on from what was brought back."""
    from server.loop import Coordinator

    Coordinator(None, ran.resident, brought, Watch()).serve()  # type: ignore[arg-type]


def test_tables_say_what_is_withheld(everything: tuple[Ran, Everything]) -> None:
    """Neither nothing nor 0: a column is left out, or a cell says so; the page and a comparison
    come to their end."""
    ran, _ = everything
    rows = report.load(ran.run.metrics)
    table = report.rounds_table(rows)
    heads = [str(column.header) for column in table.columns]
    assert "ε" in heads and not {"up", "down", "seconds", "failed"} & set(heads)
    html = page([read(ran.run)], "one")
    assert report.WITHHELD in html and not any(f">{name}" in html for name in NAMES)
    found = compare.result("fedit", compare.rounds("fedit", ran.run), ran.config, 1)
    assert (found.bytes_up, found.seconds) == (None, None)
    from fedlora import tables

    (cells,) = tables.cells([found])
    assert cells[1][cells[0].index("up")] == report.WITHHELD
    tables.write([found], ran.run.path)
    assert "books" not in card(ran.run, ran.strategy)
    tell(ran.run, Console(quiet=True))


def test_updates_are_not_kept(world: World, tmp_path: Path) -> None:
    """run.keep = "updates" would hand them to the submitter without noise."""
    with pytest.raises(UserError, match=r"run\.keep = updates"):
        federate(world, tmp_path, "fedit", run__keep="updates", **CENTRAL)


def test_tensorboard_tells_no_time(everything: tuple[Ran, Everything]) -> None:
    """How long a round took tells how many were in it: events are a second apart."""
    ran, _ = everything
    (path,) = (ran.run.path / "tensorboard").iterdir()
    events = [e for e in EventFileLoader(str(path)).Load() if not e.file_version]
    began = {e.wall_time - e.step for e in events}
    assert len(began) == 1 and {e.step for e in events} == {0, 1, 2}


@pytest.mark.parametrize("more", [{}, {"submit.run": "one"}])
def test_the_log_tells_no_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Its lines have none, where a run's usually have it."""
    monkeypatch.setenv("FEDLORA_RUNS", str(tmp_path / "runs"))
    flat = {k.replace("__", ".", 1): v for k, v in {**CENTRAL, "run__rounds": 1}.items()}
    tree = world.tree(tmp_path / "runs", {"strategy.name": "fedit", **flat})
    config, _ = settings.resolve(tree, strategies.load)
    grid = InProcessGrid(config, 3, tmp_path / "clients", Pool(0, 1))
    given = {**settings.to_flat(config), **more}
    server_app.main(grid, Context(1, 1, {}, RecordDict(), given))
    (log,) = (tmp_path / "runs").glob("*/log.txt")
    lines = log.read_text("utf-8").splitlines()
    assert any(line.startswith("round 1/1: score") for line in lines)
    assert not any(re.search(r"\d\d:\d\d", line) for line in lines)


@pytest.mark.parametrize("live", ["wandb", "mlflow"])
def test_trackers_that_keep_times_are_refused(world: World, tmp_path: Path, live: str) -> None:
    """They stamp what they are given with the time at which it comes."""
    with pytest.raises(UserError, match=rf"run\.track = {live}"):
        federate(world, tmp_path, "fedit", run__track=["tensorboard", live], **CENTRAL)


@pytest.mark.parametrize("status", ["error", "wrong"])
def test_how_a_run_ends_does_not_depend_on_who_was_drawn(
    world: World, tmp_path: Path, status: str
) -> None:
    """Where clients are drawn, a run in which nobody was, or all who were failed, ends as any
    other: it is noise alone."""

    def fail(reply: Any) -> Any:
        if reply.metadata.message_type == "train":
            reply.content = wire.pack(Parcel({"status": status, "reason": "no"}))
        return reply

    given = {**CENTRAL, "run__rounds": 8, "run__clients_per_round": 2}
    given |= {"privacy__insecure_seed": 3}
    ran = federate(world, tmp_path, "fedit", grid=Meddler(fail), **given)
    memory = ran.run.load(8).memory["use"]
    assert len(ran.rows()) == 9 and not memory["given"]
    assert memory["wrong"] == (list(NAMES) if status == "wrong" else [])


def test_who_is_asked_again_or_late_is_not_told(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A replay, a client that lost its disk: the log of the process, which whoever started the run
    reads too, has no line of it."""

    def replayed(reply: Any) -> Any:
        return [reply, reply] if reply.metadata.message_type == "train" else reply

    watch = Everything()
    given = {**CENTRAL, "run__rounds": 1}
    federate(world, tmp_path, "fedsa", watch=watch, grid=Meddler(replayed), **given)
    assert not any("node" in line for line in caplog.messages)
    assert not any(isinstance(x, str) for x in watch.told)


def test_the_server_itself_goes_on(world: World, tmp_path: Path) -> None:
    """Its own directory has what it knows of clients, for its owner alone to read."""
    with contextlib.suppress(Crash):
        federate(world, tmp_path, "fedit", watch=crash_at(2, "train"), **CENTRAL)
    ran = federate(world, tmp_path, "fedit", resume=True, **CENTRAL)
    assert set(ran.run.load(2).memory["roster"]["members"]) == set(NAMES)
    secret = ran.run.round(2) / "memory.json"
    assert secret.stat().st_mode & 0o077 == 0
    facts = json.loads((ran.run.round(2) / "checkpoint.json").read_text())
    assert facts["memory"] == {}
