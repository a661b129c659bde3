"""A `fedlora run` in a process of its own, and the memory of it and its workers meanwhile."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK = 0.1  # seconds between looks


@dataclass
class Watched:
    """What a run took. Memory in bytes, the most that was seen of each."""

    parent: int = 0
    worker: int = 0  # of whichever had most
    together: int = 0  # at one moment
    start: float = 0.0  # seconds until round 1 began
    rounds: list[float] = field(default_factory=list)  # seconds of each
    update: float = 0.0  # bytes that a client sends up in a round


def watched(settings: Sequence[str], folder: Path) -> Watched:
    """Run a simulation with its directory at `folder`/run. Raises SystemExit where it fails."""
    folder.mkdir()
    command = [sys.executable, "-m", "fedlora", "run", *settings]
    command += [f"run.dir={folder}", "run.name=run", "run.keep=all"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    found, began = Watched(), time.time()
    log = folder / "log.txt"
    with log.open("w") as said:
        run = subprocess.Popen(command, stdout=said, stderr=said, env=env)
        try:
            while run.poll() is None:
                look(psutil.Process(run.pid), found)
                time.sleep(LOOK)
        finally:
            run.terminate()  # its workers end with it
            run.wait()
    if run.returncode:
        raise SystemExit(f"{log.read_text()[-2000:]}\nthe run ended with {run.returncode}")
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if row["kind"] == "round" and row["round"]]
    if any(row["failed"] or row["dropped"] for row in rounds):
        raise SystemExit(f"clients were missing in a round: {rounds}")
    found.start = (folder / "run/round-0000/checkpoint.json").stat().st_mtime - began
    found.rounds = [row["seconds"] for row in rounds]
    found.update = rounds[-1]["bytes_up"] / rounds[-1]["clients"]
    return found


def look(parent: psutil.Process, found: Watched) -> None:
    """Raise what was seen so far to what is there now."""
    with suppress(psutil.Error):  # it has just ended
        own = taken(parent)
        workers = [taken(child) for child in parent.children(recursive=True)]
        found.parent = max(found.parent, own)
        found.worker = max([found.worker, *workers])
        found.together = max(found.together, own + sum(workers))


def taken(process: psutil.Process) -> int:
    """Bytes of a process: the proportional set size, where the system tells it."""
    memory = process.memory_full_info()
    return getattr(memory, "pss", memory.rss)
