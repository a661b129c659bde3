"""The closing words of a run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlora.runs import RunDir
from server.result import tell
from tests.fedlora.rows import FOUR, ROWS, client_row, private, round_row, spent

PRIVACY = """
[privacy]
epsilon = 3.0
accountant = "rdp"
mode = "local"
insecure_seed = "null"
"""


def told(path: Path, config: str, rows: list[dict[str, Any]]) -> list[str]:
    """What is printed after a run with this configuration and these metrics, table aside."""
    (path / "run.json").write_text(json.dumps({"experiment": "x"}))
    (path / "config.toml").write_text(config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = io.StringIO()
    tell(RunDir(path), Console(file=out, width=75))
    lines = out.getvalue().splitlines()
    assert lines[1].split()[0] == "round"
    return [line for line in lines if ": " in line]


def central(config: str) -> str:
    return config.replace('"local"', '"central"').replace('"rdp"', '"prv"')


def test_a_private_run_says_what_it_promises(tmp_path: Path) -> None:
    """Between table and paths: ε rounded up, δ, whose they are, how composed, what is protected;
    in one line however narrow the console."""
    lines = told(tmp_path, PRIVACY, private(FOUR))
    assert lines[0] == (
        "privacy: ε ≤ 2.99 at δ = 1.4e-04 (largest of 4 clients, RDP accountant), example-level"
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["curves", "adapter", "metrics"]


def test_a_client_that_never_told_its_epsilon_is_not_counted(tmp_path: Path) -> None:
    """The largest is one of those that told it; a client that always failed did not."""
    rows = [*private({"a": [1.0]}), client_row(1, "mute")]
    assert "(largest of 1 client, RDP" in told(tmp_path, PRIVACY, rows)[0]


def test_noise_at_the_server_is_another_promise(tmp_path: Path) -> None:
    """Central privacy protects a client as a whole, and from everyone but the server."""
    assert told(tmp_path, central(PRIVACY), private(FOUR))[0] == (
        "privacy: ε ≤ 2.99 at δ = 1.4e-04 (PRV accountant), user-level, noise at the server"
    )


@pytest.mark.parametrize("config", [PRIVACY, central(PRIVACY)])
def test_noise_that_repeats_is_warned_of(tmp_path: Path, config: str) -> None:
    """A seed for the noise undoes the promise, which the next line says."""
    seeded = config.replace('insecure_seed = "null"', "insecure_seed = 0")
    assert told(tmp_path, seeded, private(FOUR))[1] == (
        "warning: privacy.insecure_seed = 0 makes the noise predictable: nothing here is private"
    )


def test_nothing_is_promised_that_is_not_known(tmp_path: Path) -> None:
    """No finite ε, or no δ since nobody has trained: neither is made up."""
    rows = [round_row(0, **spent(0.0, None)), round_row(1, **spent(None))]
    assert told(tmp_path, PRIVACY, rows)[0].startswith(
        "privacy: ε is unknown or infinite at δ = 1.4e-04 ("
    )
    assert told(tmp_path, PRIVACY, rows[:1])[0].startswith("privacy: ε ≤ 0.00 (")


@pytest.mark.parametrize("config", ["", PRIVACY.replace("epsilon = 3.0", 'epsilon = "null"')])
def test_a_run_that_is_not_private_says_nothing_of_it(tmp_path: Path, config: str) -> None:
    """Also one of an earlier version, whose configuration has no such section."""
    lines = told(tmp_path, config, ROWS)
    assert [line.split(":")[0] for line in lines] == ["curves", "adapter", "metrics"]
