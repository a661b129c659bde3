"""What a run needs of a machine, against sums made by hand; and what a few layers tell of many."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import strategies
from fedlora import cost as costs
from fedlora import memory as memories
from fedlora import settings
from fedlora.adapters import targets
from fedlora.capacity import lacking, needs
from fedlora.cli import app
from fedlora.cost import cost, skeleton
from fedlora.memory import memory
from tests.fedlora.tasks import talk

BERT = Path(__file__).parents[1] / "configs/bert-base"
FACTOR = 24 * 4 * 768  # of A, or of B, in query and value at rank 4
DENSE = 24 * 768 * 768 * 4  # bytes of all adapted layers


def resolved(method: str, own: dict[str, Any] | None = None, **run: Any) -> Any:
    given = {
        "model": {"name": str(BERT)},
        "adapter": {"rank": 4, "target_modules": ["query", "value"], "head": "frozen"},
        "data": {"clients": 10, "max_length": 32},
        "strategy": {"name": method, **(own or {})},
        "run": {"rounds": 3, **run},
    }
    return settings.resolve(given, strategies.load)


def needed(method: str, own: dict[str, Any] | None = None, **run: Any) -> Any:
    config, strategy = resolved(method, own, **run)
    found, model = cost(config, strategy), skeleton(config.model)
    shapes = targets.targets(model, config.adapter)
    held = memory(config, model, found.parameters, found.trained_parameters)
    return needs(config, strategy, found, held, shapes), held, found


def test_linear_methods_need_three_updates_beside_the_state() -> None:
    """Whatever the number of clients; checkpoints and views three each, once for all."""
    whole, own, found = needed("fedit")
    update = 4 * 2 * FACTOR
    state = update + 4 * (found.parameters["head"])
    assert whole.server - own.base - own.adapter == state + 3 * update
    assert (whole.message, whole.client) == (state, own.together)
    assert whole.disk == 3 * state + 10 * update + 3 * state
    assert needed("fedit", clients_per_round=2)[0].server == whole.server
    fslora, *_ = needed("fslora")
    assert fslora.disk > 3 * state + 3 * 10 * 0.5 * update, "each has a view of its own"


def test_a_residual_grows_to_twice_the_layers_at_most() -> None:
    """FedEx of ten clients: nine ranks a round in every layer; after weeks, P, Q and D."""
    growth = 4 * 9 * 2 * FACTOR
    few, many = (needed("fedex", rounds=n) for n in (3, 10_000))
    assert few[2].growth == growth
    assert few[0].message == few[2].bytes_down_first + 3 * growth
    assert many[0].message == many[2].bytes_down_first + 2 * DENSE
    capped, _, found = needed("fedex", {"max_rank": 64}, rounds=10_000)
    assert capped.message == found.bytes_down_first + 24 * 4 * 64 * (768 + 768)
    whole, own, found = few
    assert whole.server == own.base + own.adapter + 2 * (found.state + 3 * growth) + 3 * 8 * FACTOR


def test_what_a_machine_lacks_is_said() -> None:
    """Memory for every worker, and disk."""
    whole, *_ = needed("fedit")
    room = whole.server + 2 * whole.client
    assert lacking(whole, 2, room, whole.disk) == [] != lacking(whole, 3, room, whole.disk)
    (said,) = lacking(whole, 2, room, 0)
    assert "of disk" in said


@pytest.mark.parametrize(("clients", "code"), [(1, 0), (100_000_000, 1)])
def test_the_command_tells_whether_it_fits(clients: int, code: int) -> None:
    """By its exit code too: what stays with a hundred million clients does not."""
    given = [f"model.name={BERT}", "strategy.name=fedsa", "data.max_length=64", "run.rounds=1"]
    given += [f"data.clients={clients}", "run.clients_per_round=1"]
    ran = CliRunner().invoke(app, ["cost", *given, "--fits"])
    assert (ran.exit_code, "fits this machine" in ran.output) == (code, not code), ran.output


@pytest.mark.parametrize("layers", [6, 7])
@pytest.mark.parametrize("fields", [{}, {"gradient_checkpointing": True}])
def test_a_few_layers_tell_what_many_keep(
    tmp_path: Path, layers: int, fields: dict[str, Any]
) -> None:
    """To the byte; a model of which one layer is adapted is counted whole."""
    talk.save(tmp_path, hidden_size=32, intermediate_size=64, num_hidden_layers=layers)
    model = {"name": str(tmp_path), "task": "instruction", "dtype": "bf16", **fields}
    for modules in ("all-linear", ".*layers.2.*q_proj"):
        given = {
            "model": model,
            "adapter": {"rank": 2, "target_modules": modules},
            "data": {"max_length": 16},
            "strategy": {"name": "fedit"},
        }
        config, _ = settings.resolve(given, strategies.load)
        found = memories._kept(config, skeleton(config.model))
        assert found == memories._kept_of(config, skeleton(config.model))
    assert memories._alike(config, skeleton(config.model)) == 0


@pytest.mark.parametrize("method", strategies.BUILTIN)
def test_one_layer_stands_for_all_of_its_shape(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number is that of a rehearsal with all layers."""
    one = cost(*resolved(method, clients_per_round=3))
    monkeypatch.setattr(costs, "_built_in", lambda strategy: False)
    assert cost(*resolved(method, clients_per_round=3)) == one
