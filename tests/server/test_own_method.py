"""A method of one's own: a module where the run is started; its mistakes name themselves."""

import itertools
import sys
import textwrap
from contextlib import nullcontext

import pytest

import strategies
from fedlora import settings
from fedlora.errors import MethodError
from simulations.pool import Pool
from simulations.run import simulate
from tests.federation import Watch, federate, kept, same

NUMBERS = itertools.count()  # a module is imported once a process

HEAD = """
    import torch
    from fedlora import Strategy

    class Mine(Strategy):
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module of its own name into the working directory, and names the method in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def made(body):
        module = f"own_method_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(
            textwrap.dedent(HEAD) + textwrap.indent(textwrap.dedent(body), "    ")
        )
        return f"{module}:Mine"

    return made


def test_a_method_of_ones_own_runs(world, tmp_path, write):
    """With a setting and a memory of its own; the memory is kept and never sent."""
    name = write("""
        keep: float = 0.5

        def aggregate(self, state, updates, round):
            mean = super().aggregate(state, updates, round)
            found = {k: self.keep * state[k] + (1 - self.keep) * t for k, t in mean.items()}
            return found | {"server/rounds": torch.tensor([float(round.number)])}
    """)
    ran = federate(world, tmp_path, name, strategy__keep=0.25, run__keep="updates")
    before, after = ran.state(1), ran.state(2)
    assert float(after["server/rounds"]) == 2
    for k in kept(ran, 2):
        assert "server/rounds" not in k.sent
    some = next(k for k in before if k.endswith(".A"))
    mean = sum(k.weight * k.update[some] for k in kept(ran, 2))
    assert (after[some] - (0.25 * before[some] + 0.75 * mean)).abs().max() < 1e-6
    assert ran.row(3)["failed"] == ran.row(3)["dropped"] == {}


def test_float64_from_a_method_is_no_mistake(world, tmp_path, write):
    """A method may compute in float64: what travels and is kept is fp32 on both sides."""
    name = write("""
        def begin(self, base):
            return {k: t.double() for k, t in base.initial().items()}

        def broadcast(self, state, client, round):
            view = super().broadcast(state, client, round)
            return {k: t.double() / 3 * 3 for k, t in view.items()}

        def upload(self, tensors, client, round):
            return {k: t.double() for k, t in super().upload(tensors, client, round).items()}

        def aggregate(self, state, updates, round):
            changed = super().aggregate(state, updates, round)
            return {k: t.double() for k, t in changed.items()}
    """)
    ran = federate(world, tmp_path, name, run__rounds=2)
    assert (ran.row(2)["clients"], ran.row(2)["failed"], ran.row(2)["dropped"]) == (3, {}, {})


def test_a_method_that_alternates_parts(world, tmp_path, write):
    """Odd rounds train and send B, even rounds A: the other part and its bytes stay where they
    are."""
    name = write("""
        def trains(self, round):
            return {"B", "head"} if round.number % 2 else {"A"}
    """)
    ran = federate(world, tmp_path, name, run__keep="updates")
    for number, part in ((1, "B"), (2, "A"), (3, "B")):
        before, after = ran.state(number - 1), ran.state(number)
        factors = {k for k in after if k.endswith((".A", ".B"))}
        moved = {k for k in factors if not same({k: before[k]}, {k: after[k]})}
        assert moved == {k for k in factors if k.endswith(f".{part}")}


MISTAKES = {
    "aggregate raises": (
        "def aggregate(self, state, updates, round): return 1 / 0",
        ["Mine.aggregate raised ZeroDivisionError: division by zero"],
    ),
    "aggregate returns a list": (
        "def aggregate(self, state, updates, round): return [1]",
        ["Mine.aggregate returned list, not a dictionary of tensors"],
    ),
    "aggregate returns a number": (
        "def aggregate(self, state, updates, round): return {k: 1.0 for k in state}",
        ["Mine.aggregate returned float for ", ", not a tensor"],
    ),
    "aggregate returns a wrong name": (
        "def aggregate(self, state, updates, round): return {'layer.0.A': torch.ones(4, 32)}",
        ["Mine.aggregate returned 'layer.0.A', which the state does not have"],
    ),
    "aggregate returns a wrong shape": (
        """
        def aggregate(self, state, updates, round):
            return {k: t.T for k, t in state.items() if k.endswith('query.A')}
        """,
        ["Mine.aggregate returned bert", "query.A in shape (32, 4)", "the state has (4, 32)"],
    ),
    "a residual of no layer": (
        "def aggregate(self, state, updates, round): return {'x.P': torch.ones(4, 32)}",
        ["Mine.aggregate returned 'x.P', which the state does not have"],
    ),
    "a residual in a wrong shape": (
        """
        def aggregate(self, state, updates, round):
            k = next(k for k in state if k.endswith('query.A'))[:-1]
            return {k + 'P': torch.ones(5, 1), k + 'Q': torch.ones(1, 32)}
        """,
        ["Mine.broadcast gave what the adapter cannot hold", "query.P", "(5, 1)", "(32, 1)"],
    ),
    "place returns nothing": (
        "def place(self, update, state, round): pass",
        ["Mine.place returned NoneType, not a dictionary of tensors"],
    ),
    "place returns a wrong shape": (
        """
        def place(self, update, state, round):
            return {k: t[:1] for k, t in update.tensors.items()}
        """,
        ["Mine.place returned ", " in shape (1, ", "where the state has ("],
    ),
    "begin returns a wrong name": (
        "def begin(self, base): return base.initial() | {'layer': torch.ones(1)}",
        ["Mine.begin returned 'layer', which the state does not have"],
    ),
    "broadcast returns nothing": (
        "def broadcast(self, state, client, round): pass",
        ["Mine.broadcast returned NoneType, not a dictionary of tensors"],
    ),
    "broadcast returns a wrong name": (
        "def broadcast(self, state, client, round): return {**state, 'foo.A': torch.ones(1)}",
        ["Mine.broadcast gave what the adapter cannot hold", "foo.A"],
    ),
    "broadcast to a client returns a wrong shape": (
        """
        def broadcast(self, state, client, round):
            cut = client.id != 'server'
            return {k: t[:1] if cut and k.endswith('query.B') else t for k, t in state.items()}
        """,
        ["client books: Mine.broadcast", "query.B", "(1, 4)", "(32, 4)"],
    ),
    "upload returns a list": (
        "def upload(self, tensors, client, round): return list(tensors.values())",
        ["client books: Mine.upload returned list, not a dictionary of tensors"],
    ),
    "upload invents a name": (
        "def upload(self, tensors, client, round): return {'mine.A': torch.ones(1)}",
        ["Mine.upload returned 'mine.A', which a client does not send"],
    ),
    "trains nothing": (
        "def trains(self, round): return set()",
        ["client books: Mine.trains leaves nothing to train in round 1"],
    ),
    "rank raises": (
        "def rank(self, full, index, client, round): return self.nothing",
        ["Mine.rank raised AttributeError"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_the_class_the_hook_and_the_tensor(world, tmp_path, write, mistake):
    """And leaves nothing half-written: a run that never had a first state is gone, and of the
    round that failed there is no folder."""
    body, words = MISTAKES[mistake]
    tree = world.tree(tmp_path, {"strategy.name": write(body), "run.keep": "updates"})
    config, strategy = settings.resolve(tree, strategies.load)
    with pytest.raises(MethodError) as found:
        simulate(config, strategy, Pool(0, 1), lambda log: nullcontext(Watch()))
    for word in words:
        assert word in str(found.value)
    left = sorted(p.name for p in tmp_path.glob("run/*round*"))
    assert left in ([], ["round-0000"])
    early = mistake.startswith(("begin", "broadcast returns", "rank"))
    assert (tmp_path / "run").exists() == (not early)
