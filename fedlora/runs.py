"""The run directory: the resolved configuration, metrics, a checkpoint each round.

    config.toml            the resolved configuration, runnable again
    run.json               the experiment's id, and the version and environment that began it
    metrics.jsonl          one object a round and one a client and round
    round-0003/            the server after round 3: state.safetensors, checkpoint.json; under
                           central privacy what it knows of clients is apart, in memory.json
    origin.json            what the run began with; which rows, in split.json (server.origin)
    clients/               what stays on simulated clients
    .lock                  held by the ServerApp that serves the run
    adapter/, curves.png   the result

A round is written aside and renamed, so a directory that is there is whole; its checkpoint holds
the state's digest, so that damage shows and the round before is used.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedlora import files, lines, settings, tensorfiles
from fedlora.config import Config
from fedlora.environment import environment
from fedlora.errors import UserError
from fedlora.tensors import Tensors

Row = dict[str, Any]
STAMP = "%Y%m%d-%H%M%S"
MEMORY = "memory.json"  # in a round's folder, where what the server knows of clients is a secret
SPLIT = "split.json"  # which rows the run began with: see server.origin


@dataclass(frozen=True)
class Checkpoint:
    """The server after a round: its state, what it knows of clients (nothing, where that stayed
    elsewhere), and that round's metrics, which are not `scored` while the model's scores are still
    to come."""

    round: int
    state: Tensors
    memory: dict[str, Any]
    rows: list[Row]
    scored: bool = True


class RunDir:
    """One run's directory. Raises UserError where its `run.json` is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = _facts(path / "run.json")
        self.experiment: str = self.facts["experiment"]

    @classmethod
    def create(cls, config: Config, folder: str = "") -> "RunDir":
        """A new directory for this configuration, in `folder` (run.dir by default). Raises
        UserError where it exists."""
        name = config.run.name or f"{config.method.split(':')[-1]}-{time.strftime(STAMP)}"
        path = Path(folder or config.run.dir) / name
        if path.exists():
            raise UserError(
                f"the run directory {path} exists: choose another run.name, "
                f"continue it with --resume {name}, or remove it"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{name}.{os.getpid()}")
        aside.mkdir()
        try:
            cls._fill(aside, config)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return cls(path)

    @staticmethod
    def _fill(folder: Path, config: Config) -> None:
        """With what there is before anything is known of the data or the model."""
        settings.write(config, folder / "config.toml")
        from fedlora import __version__

        facts = {
            "experiment": secrets.token_hex(8),
            "version": __version__,
            "environment": environment(),
        }
        files.write(folder / "run.json", json.dumps(facts))
        (folder / "metrics.jsonl").touch()

    @classmethod
    def open(cls, name: str, folder: str = "runs") -> "RunDir":
        """An existing run, by path or by name inside `folder`."""
        for path in (Path(name), Path(folder) / name):
            if (path / "run.json").is_file():
                return cls(path)
        known = sorted(p.parent.name for p in Path(folder).glob("*/run.json"))
        there = f"; there are {', '.join(known)}" if known else ""
        raise UserError(f"there is no run '{name}' in {folder}/{there}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """The directory for this process alone, until it ends at the latest. Raises UserError
        where another process has it."""
        with held(
            self.path,
            f"the run {self.path.name} is being served by another process: wait until it "
            "ends, or stop it (flwr list, flwr stop)",
        ):
            yield

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        """What a language model answered, of runs with generate.rows: see fedlora.answers."""
        return self.path / "answers.jsonl"

    def round(self, number: int) -> Path:
        return self.path / f"round-{number:04d}"

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, oldest first."""
        found = (re.fullmatch(r"round-(\d{4,})", p.name) for p in self.path.iterdir())
        return sorted(int(m[1]) for m in found if m)

    @contextmanager
    def aside(self, number: int) -> Iterator[Path]:
        """An empty directory in which a round is prepared; gone afterwards unless committed."""
        path = self.path / f".round-{number:04d}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def commit(
        self, checkpoint: Checkpoint, aside: Path, keep: str, discreet: bool = False
    ) -> None:
        """Make a round permanent: all of it or nothing of it. Its metrics are told once they are
        whole: now, or by `complete`.

        Args:
            discreet: whether what the server knows of clients is a secret of its own, in a file
                that stays with it. Raises ValueError where a number is none that JSON has.
        """
        digest = hashlib.sha256()  # of the file's bytes, as they are written
        tensorfiles.save(checkpoint.state, aside / "state.safetensors", told=digest.update)
        facts = {
            "round": checkpoint.round,
            "state": digest.hexdigest(),
            "memory": {} if discreet else checkpoint.memory,
            "metrics": checkpoint.rows,
            "scored": checkpoint.scored,
        }
        if discreet:
            files.write(aside / MEMORY, _json(checkpoint.memory), 0o600)
        files.write(aside / "checkpoint.json", _json(facts))
        final = self.round(checkpoint.round)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one that is being done again
        aside.rename(final)
        files.sync(self.path)
        if checkpoint.scored:
            self._tell(checkpoint.rows)
        if keep == "latest":
            for number in self.rounds()[:-2]:
                shutil.rmtree(self.round(number))

    def complete(self, number: int, rows: list[Row]) -> None:
        """The metrics of a round that was committed without its scores."""
        path = self.round(number) / "checkpoint.json"
        facts = json.loads(path.read_text("utf-8"))
        files.write(path, _json({**facts, "metrics": rows, "scored": True}))
        self._tell(rows)

    def _tell(self, rows: list[Row]) -> None:
        with files.writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(_json(row) + "\n" for row in rows)

    def resume(self) -> tuple[Checkpoint | None, list[str]]:
        """The last whole checkpoint, metrics rewound to it, and what was wrong with later ones."""
        checkpoint, wrong = self.last()
        self._rewind(checkpoint)
        return checkpoint, wrong

    def last(self) -> tuple[Checkpoint | None, list[str]]:
        """The last whole checkpoint, if there is one, and what is wrong with later ones."""
        wrong: list[str] = []
        for number in reversed(self.rounds()):
            try:
                return self.load(number), wrong
            except PermissionError:
                raise  # it is whole for somebody else
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as e:
                wrong.append(f"the checkpoint of round {number} is damaged ({e}): it is not used")
        return None, wrong

    def load(self, number: int) -> Checkpoint:
        """One round's checkpoint. Raises ValueError and the like where it is damaged."""
        path = self.round(number)
        facts = json.loads((path / "checkpoint.json").read_text("utf-8"))
        if _sha256(path / "state.safetensors") != facts["state"]:
            raise ValueError("the state's digest differs")
        state = load_file(path / "state.safetensors")
        memory = facts["memory"]
        if (path / MEMORY).is_file():
            memory = json.loads((path / MEMORY).read_text("utf-8"))
        for row in facts["metrics"]:
            lines.METRICS.validate_python(row)
        scored = facts.get("scored", True)  # as it was before version 0.3
        return Checkpoint(facts["round"], state, memory, facts["metrics"], scored)

    def _rewind(self, checkpoint: Checkpoint | None) -> None:
        """Metrics up to this round, whose own rows come from the checkpoint itself; and answers."""
        number = checkpoint.round if checkpoint else 0
        known = checkpoint.rows if checkpoint and checkpoint.scored else []
        own = [_json(row) + "\n" for row in known]
        files.write(self.metrics, "".join(before(self.metrics, number) + own))
        if self.answers.is_file():
            kept = before(self.answers, number + 1) if checkpoint else []
            files.write(self.answers, "".join(kept))


def before(path: Path, number: int) -> list[str]:
    """The lines of a file of rows that are about rounds before this one."""
    found = path.read_bytes().split(b"\n") if path.is_file() else []
    return [f"{line.decode('utf-8')}\n" for line in found if _round_of(line) < number]


def _json(value: object) -> str:
    """Raises ValueError for NaN and infinities, which Python would write and JSON does not have."""
    return json.dumps(value, allow_nan=False)


def _facts(path: Path) -> Row:
    try:
        return lines.parsed(path.read_bytes(), lines.RUN)
    except ValueError as e:
        raise UserError(
            f"{path} is damaged ({e}): restore it, or run the experiment anew"
        ) from None


def _round_of(line: bytes) -> float:
    """The round that a line is about; none comes as late as a line cut short."""
    try:
        return int(json.loads(line.decode("utf-8"))["round"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """A folder for this process alone, until it ends at the latest. Raises UserError, with `busy`,
    where another process has it."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        yield


def comparison_dir(config: Config) -> Path:
    """Where a comparison's runs go: `run.name`, or the time. Raises UserError where it exists."""
    path = Path(config.run.dir or "runs") / (config.run.name or f"compare-{time.strftime(STAMP)}")
    if path.exists():
        raise UserError(
            f"the directory {path} exists: choose another run.name, "
            f"continue it with --resume {path}, or remove it"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
