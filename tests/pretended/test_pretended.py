"""An accelerator that is pretended: every way to train works there, ends where the CPU ends, and
has it waited for once a step at most.

All of it is done in one process of its own, see `cases`, whose lines are read here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pretended.plan import AFTER, DEVICE, LOOPS, RUNS

ROOT = Path(__file__).parents[2]
SECONDS = 600
# Passes are cut for a GPU there, so that sums are rounded otherwise; bf16 has 8 bits.
CLOSE = {"bf16": 0.05}
USUALLY = 1e-3
TRANSFORMERS = 1  # looks once a pass whether rows are packed, or into the mask


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By case what came of it."""
    folder = tmp_path_factory.mktemp("pretended")
    command = [sys.executable, "-m", "tests.pretended", "tests.pretended.cases", str(folder)]
    cache = {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"case"')]
    return {line.pop("case"): line for line in lines}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_where_it_ends_on_the_cpu(told: dict[str, Any], name: str) -> None:
    """Every client trains, none in vain; the state and the scores are the CPU's but for
    rounding."""
    found = told[name]
    assert found["code"] == 0, found
    row, plain = found["row"], found["cpu"]["row"]
    if name != "central":  # which tells nobody who took part
        assert row["clients"] == 2 and not row["failed"] and not row["dropped"], row
    assert found["apart"] < CLOSE.get(name, USUALLY)
    for key in ("test_loss", "loss", "personalised_loss", "clipped"):
        if row.get(key) is not None or plain.get(key) is not None:
            assert row[key] == pytest.approx(plain[key], rel=CLOSE.get(name, USUALLY)), key
    assert not found["log"], "what did not work was tried again in another way"


@pytest.mark.parametrize("name", AFTER)
def test_what_follows_a_run_works_there(told: dict[str, Any], name: str) -> None:
    """Resumed, scored, exported, merged and talked to."""
    assert told[name].get("code") == 0, told[name]


def test_what_a_run_left_says_the_same(told: dict[str, Any]) -> None:
    """Scored again it has the score that it had; merged it is the CPU's model; it answers."""
    again = json.loads(told["evaluate"]["out"])
    assert again["loss"] == pytest.approx(told["bert"]["row"]["test_loss"], rel=1e-5)
    assert told["merged"]["apart"] < USUALLY
    assert told["chat"]["out"].strip()


@pytest.mark.parametrize("name", LOOPS)
def test_a_step_is_not_waited_for(told: dict[str, Any], name: str) -> None:
    """Nothing in a loop has the host wait for the device, but Transformers once a pass; where it
    waits more, the lines are named. Steps are of one pass, but where rows are computed with
    alone."""
    found = told[f"step {name}"]
    assert name == "owned" or found["passes"] == 1
    assert sum(found["waits"].values()) <= TRANSFORMERS * found["passes"], found
    assert found["copies"], "nothing was watched"


def test_a_pass_of_an_evaluation_is_not_waited_for(told: dict[str, Any]) -> None:
    """What passes find is added up on the device and read at the end."""
    found = told["passes"]
    assert found["passes"] > 1
    assert sum(found["waits"].values()) <= TRANSFORMERS * found["passes"], found


def test_what_an_adapter_gives_is_on_the_cpu(told: dict[str, Any]) -> None:
    """What is exchanged is; a method's first state is made of matrices where the model is."""
    where = {"initial": "cpu", "read": "cpu", "weight": DEVICE, "gradient": DEVICE}
    assert told["boundary"] == where


def test_a_model_that_rests_is_on_the_cpu(told: dict[str, Any]) -> None:
    """Whole, but while gradients are asked of it; these are made on the device as before."""
    where = {"model": ["cpu"], "weight": DEVICE, "gradient": DEVICE}
    assert told["rest"] == {**where, "same": True, "again": 1}


@pytest.mark.parametrize(("step", "format"), [("stacked", "float32"), ("bf16", "bfloat16")])
def test_products_are_in_the_format_of_the_base(
    told: dict[str, Any], step: str, format: str
) -> None:
    """Those of layers and of adapters on them; only positions are turned into angles in fp32."""
    found = [line.split() for line in told[f"step {step}"]["formats"]]
    adapters = {kind for line, kind in found if "/adapters/" in line}
    assert adapters == {format}


def test_the_script_for_a_gpu_runs_there(told: dict[str, Any]) -> None:
    """Every way to train is measured."""
    assert told["gpu"].get("code") == 0, told["gpu"]
    (speed,) = told["gpu"]["report"]["tables"]
    assert len(speed["rows"]) == 5


def test_it_refuses_what_cuda_refuses(told: dict[str, Any]) -> None:
    """Else a run there would show nothing."""
    assert all(told["refused"].values()), told["refused"]


def test_waits_are_counted(told: dict[str, Any]) -> None:
    """Values that are read, copies that block and shapes that values decide; nothing else."""
    found = told["counted"]
    free = {"product", "masked number", "set by mask", "rows", "non-blocking"}
    assert {name for name, waits in found.items() if not waits} == free
    assert {waits for name, waits in found.items() if waits} == {1}


def test_dropout_there_is_seeded_and_leaves_nothing(told: dict[str, Any]) -> None:
    """`fedlora.streams.forked` seeds the device's generator too and puts it back; one that is not
    in use it leaves alone."""
    assert told["forks"] == {"same": True, "back": True, "alone": True}
