"""Events: a run told as lines and shown again; its directory brought along, whole or named."""

import io
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from queue import Queue

import pytest

from fedlora.config import Config
from fedlora.progress import Observer
from fedlora.runs import RunDir
from server import delivery, events
from server.delivery import Incoming, manifest
from server.events import Events, parse, play
from server.submit import Listener
from tests.fedlora.test_progress import play as watch


class Heard(Observer):
    """What an observer is told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def __getattribute__(self, name: str) -> object:
        if name in events.SHOWN:
            calls = object.__getattribute__(self, "calls")
            return lambda *given, **named: calls.append((name, [*given, *named.values()]))
        return object.__getattribute__(self, name)


def printed(monkeypatch: pytest.MonkeyPatch, tell: Callable[[Events], None]) -> list[str]:
    """The lines that a run prints."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    tell(Events())
    monkeypatch.undo()
    return out.getvalue().splitlines(keepends=True)


def opened(lines: list[str]) -> tuple[list[str], str]:
    """The lines after the one that opens the events, and its token."""
    assert lines[0] == "\n"  # whatever was printed before, the opening is a line
    token = events.opening(lines[1])
    assert token
    return lines[2:], token


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory as a server has it after round 2."""
    made = RunDir.create(Config(), str(tmp_path / "server"))
    for number in (1, 2):
        made.round(number).mkdir()
        (made.round(number) / "state.safetensors").write_bytes(bytes(range(256)) * 3000)
    (made.path / "adapter").mkdir()
    for name in ("adapter/adapter.json", "clients", "privacy.json", "sampled.json", ".lock"):
        (made.path / name).write_text("x")
    return made


def test_a_run_is_shown_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the round loop arrives, with what it said, as one numbered line each."""
    lines = printed(monkeypatch, watch)
    direct, through = Heard(), Heard()
    watch(direct)
    lines, token = opened(lines)
    found = [parse(line, token) for line in lines]
    for event in found:
        assert event is not None
        play(event, through)
    assert [e.number for e in found if e] == list(range(1, len(lines) + 1))
    assert [name for name, _ in through.calls] == [name for name, _ in direct.calls]
    assert through.calls[0] == ("begin", [5, 2]) and through.calls[-1] == direct.calls[-1]


@pytest.mark.parametrize(
    "line", ["INFO : hello", "fedlora-event T {", "fedlora-event T []", 'fedlora-event T {"n": 1}']
)
def test_other_lines_are_no_events(line: str) -> None:
    """Flower's own lines and a line cut short are passed over."""
    assert parse(line, "T") is None and parse("", "T") is None


def test_a_log_read_again_shows_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Read from the start after a broken line, each event is shown once; a gap is filled; the run
    is complete only with every event up to the last."""

    def tell(told: Events) -> None:
        watch(told)
        told.end()

    lines = printed(monkeypatch, tell)
    heard = Heard()
    listener = Listener(heard, Incoming(tmp_path))
    for line in [*lines[:5], *lines[6:]]:
        listener.hear(line)
    assert not listener.complete
    for line in lines:
        listener.hear(line)
    assert listener.complete and len(heard.calls) == 7


def test_the_run_directory_arrives_whole(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files of any size, bit for bit, with the latest checkpoint alone, and no secret, no lock and
    nothing of clients."""
    lines = printed(monkeypatch, lambda told: told.files(run.path))
    listener = Listener(Observer(), Incoming(tmp_path / "here"))
    lines, token = opened(lines)
    for line in [f"{events.OPENING} {token}\n", lines[0], *reversed(lines)]:
        listener.hear(line)
    listener.incoming.close()
    here = {p.relative_to(tmp_path / "here").as_posix(): p for p in (tmp_path / "here").rglob("*")}
    files = {name for name, path in here.items() if path.is_file()}
    own = {"run.json", "metrics.jsonl", "adapter/adapter.json"}
    assert files == own | {"round-0002/state.safetensors"}
    assert all(here[name].read_bytes() == (run.path / name).read_bytes() for name in files)
    assert not listener.incoming.missing()


def test_a_lost_or_damaged_part_is_missed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that is not whole is named and not left in its place."""
    lines = printed(monkeypatch, lambda told: told.files(run.path))
    part = next(x for x in lines if "round-0002" in x and '"part": 1' in x)
    start = part.index("{")
    changed = json.loads(part[start:])
    changed["data"] = "AAAA" + changed["data"][4:]
    for instead in ([], [part[:start] + json.dumps(changed)]):
        incoming = Incoming(tmp_path / f"here{len(instead)}")
        listener = Listener(Observer(), incoming)
        for line in [*(x for x in lines if x != part), *instead]:
            listener.hear(line)
        assert incoming.missing() == ["round-0002/state.safetensors"]
        incoming.close()
        assert {p.name for p in incoming.folder.iterdir()} == {
            "adapter",
            "metrics.jsonl",
            "run.json",
        }


def test_older_event_files_make_way(run: RunDir, tmp_path: Path) -> None:
    """What TensorBoard is told again under another name is not there twice; what stays with W&B's
    own uploads does not travel."""
    new, old = ("events.out.tfevents.2.host", "events.out.tfevents.1.host")
    for name in (f"tensorboard/{new}", "wandb/log"):
        (run.path / name).parent.mkdir()
        (run.path / name).write_text("x")
    folder = tmp_path / "here" / "tensorboard"
    folder.mkdir(parents=True)
    (folder / old).write_text("x")
    (folder / new).write_text("x")  # arrived before the list of files was heard
    sent = manifest(run.path)
    Incoming(folder.parent).expect(**asdict(sent))
    assert [path.name for path in folder.iterdir()] == [new]
    assert f"tensorboard/{new}" in sent.files and "wandb/log" not in sent.files


def test_what_cannot_be_taken_stays(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make the whole too large, or has a name that nobody would take, is named as left,
    and the rest is sent."""
    monkeypatch.setattr(delivery, "LIMIT", 10_000)
    (run.path / "a:b").write_text("x")
    found = delivery.manifest(run.path)
    assert found.left == ["a:b", "round-0002/state.safetensors"] and "run.json" in found.files


def test_the_end_waits_until_all_was_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Flower, which uploads what is printed from a queue and at the end waits for seconds
    only, `end` returns when its line has been taken up and a later one too."""
    log_queue: Queue[str | None] = Queue()
    taken: list[str | None] = []

    def write(text: str) -> int:
        log_queue.put(text)
        return len(text)

    monkeypatch.setattr(sys.stdout, "write", write)
    told = Events()
    log_queue.get()  # the opening
    allowed = threading.Semaphore(0)

    def upload() -> None:
        for _ in range(2):
            allowed.acquire()
            taken.append(log_queue.get())

    threading.Thread(target=upload, daemon=True).start()
    ending = threading.Thread(target=told.end, daemon=True)
    ending.start()
    allowed.release()
    ending.join(0.2)
    assert ending.is_alive()
    allowed.release()
    ending.join(20)
    assert not ending.is_alive() and '"kind": "end"' in (taken[0] or "") and taken[1] == "\n"
