"""Everything that is tried on the pretended device: one JSON line each on stdout.

`python -m tests.pretended tests.pretended.cases FOLDER`, which is to be empty.
"""

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedlora import cli, pictures
from fedlora.tensors import Tensors, largest, modules
from simulations.benchmarks import gpu
from tests import federation
from tests.fedlora.tasks import talk
from tests.pretended import rules, steps
from tests.pretended.plan import AFTER, DEVICE, LOOPS, RUNS, USUAL

Told = dict[str, Any]
log: list[str] = []  # of clients, since the last command began


def main(folder: str) -> None:
    os.chdir(folder)
    talk.save(Path("llama"))
    talk.rows(Path("rows.jsonl"))
    Path("bert").mkdir()
    federation.make(Path("bert"), dropout=0.0)
    torch.set_num_threads(1)
    kept = logging.Handler()
    kept.emit = lambda record: log.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fedlora.client").addHandler(kept)
    pictures.curves = lambda *_: None  # type: ignore[assignment]  # which takes longer than a run
    for name, case in cases():
        try:
            told = case()
        except Exception as e:
            told = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps({"case": name, **told}), flush=True)


def cases() -> Iterator[tuple[str, Callable[[], Told]]]:
    for name, settings in RUNS.items():
        yield name, partial(ran, name, settings)
    for name, words in AFTER.items():
        yield name, partial(command, *words)
    yield "merged", lambda: {"apart": apart(*map(_model, ("merged", "merged-cpu")))}
    for name in LOOPS:
        yield f"step {name}", partial(steps.watched_steps, name)
    yield "boundary", steps.boundary
    yield "rest", steps.rest
    yield "passes", steps.watched_passes
    yield "gpu", benchmark
    yield "refused", rules.refused
    yield "counted", rules.counted
    yield "forks", rules.forks


def ran(name: str, settings: list[str]) -> Told:
    """A run's exit code and last row, those of the same run on the CPU, and how far apart the
    states are that they ended in."""
    given, other = [*USUAL, *settings], f"{name}-cpu"
    told = command("run", *given, f"run.name={name}", f"simulation.device={DEVICE}")
    told["cpu"] = command("run", *given, f"run.name={other}", "simulation.device=cpu")
    if told["code"] or told["cpu"]["code"]:
        return told
    for run, where in ((name, told), (other, told["cpu"])):
        rows = map(json.loads, Path(f"runs/{run}/metrics.jsonl").read_text().splitlines())
        *_, where["row"] = (row for row in rows if row["kind"] == "round")
    return told | {"apart": apart(*(_state(run) for run in (name, other)))}


def benchmark() -> Told:
    """What the script for a real GPU reports of its passes."""
    asked = ["--shape", "tiny", "--repeats", "1", "--parts", "speed"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = gpu.main(["--device", DEVICE, *asked, "--json", "gpu.json"])
    return {"code": code, "report": json.loads(Path("gpu.json").read_text())}


def apart(one: Tensors, other: Tensors) -> float:
    """The largest difference of a tensor over its largest value."""
    assert one.keys() == other.keys()
    assert any(t.any() for t in other.values())
    return max(largest(t - other[k]) / (largest(other[k]) or 1) for k, t in one.items())


def _state(run: str) -> Tensors:
    """That of round 1, with the product in the place of factors that are not unique."""
    found = load_file(f"runs/{run}/round-0001/state.safetensors")
    for module in modules(list(found), "P"):
        found[f"{module}.D"] = found.pop(f"{module}.P") @ found.pop(f"{module}.Q")
    return found


def _model(folder: str) -> Tensors:
    return load_file(f"{folder}/model.safetensors")


def command(*words: str) -> Told:
    """A command's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["fedlora", *words]
    code: Any = 0
    log.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        except Exception as e:
            code = f"{type(e).__name__}: {e}"
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "log": list(log)}


if __name__ == "__main__":
    main(sys.argv[1])
