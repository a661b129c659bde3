"""What is measured of the resident trainer is what is said."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

from fedlora.strategy import Round
from simulations.benchmarks import resident_trainer
from simulations.benchmarks.resident_trainer import APPS, Arrivals, Clocked


def test_the_first_step_of_a_round_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and for its own round."""
    monkeypatch.setenv("FEDLORA_CLOCK", str(tmp_path))
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.ones(2)
    before = set(hooks)
    try:
        for number in (1, 2):
            assert Clocked().trains(Round(number)) == Clocked.trained
            assert not (tmp_path / str(number)).exists()
            optimizer.step()
            first = (tmp_path / str(number)).read_text()
            optimizer.step()
            assert (tmp_path / str(number)).read_text() == first
    finally:
        for added in set(hooks) - before:
            del hooks[added]


def test_a_step_belongs_to_the_latest_process_before_it() -> None:
    """A message's process begins before its step, and later ones are other messages'."""
    arrivals = Arrivals()
    arrivals.times = {1.0, 5.0, 9.0}
    assert arrivals.before(6.0) == 5.0


def test_the_table_has_medians_and_what_was_saved() -> None:
    """The first app's median less the second's."""
    naive, resident = APPS
    found = {
        naive: {"first step": [6.0, 7.0, 8.0], "round": [20.0]},
        resident: {"first step": [2.0, 2.5, 3.0], "round": [12.0]},
    }
    console = Console(width=120, record=True, file=StringIO())
    console.print(resident_trainer.table(found))
    text = console.export_text()
    assert "7.00" in text and "2.50" in text and "4.50" in text and "8.00" in text
