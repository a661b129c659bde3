"""Communication, counted from configurations alone, against published figures and closed forms."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import strategies
from fedlora import settings
from fedlora.cost import Cost, cost, trained_parameters
from fedlora.errors import MethodError, UserError
from fedlora.strategy import Strategy
from fedlora.testing.promises import Case, cost_counts_what_is_sent
from strategies.fedsa import FedSA
from strategies.fedsb import FedSB

CONFIGS = Path(__file__).parents[1] / "configs"
QV, ALL = ["query", "value"], "all-linear"


def count(method: str, model: str, rank: int, modules: Any, **tables: Any) -> Cost:
    """The cost of a method with its settings and the defaults beside them."""
    given = {
        "model": {"name": str(CONFIGS / model)},
        "adapter": {"rank": rank, "target_modules": modules, **tables.pop("adapter", {})},
        "strategy": {"name": method, **tables.pop("strategy", {})},
        **tables,
    }
    return cost(*settings.resolve(given, strategies.load))


@pytest.mark.parametrize(
    ("model", "modules", "rank", "A", "B"),
    [
        ("roberta-base", QV, 4, 73_728, 73_728),
        ("roberta-large", QV, 8, 393_216, 393_216),
        ("bert-base", QV, 32, 589_824, 589_824),
        ("llama-3.2-3b", ALL, 32, 23_855_104, 24_772_608),
        ("llama-3-8b", ["q_proj", "v_proj"], 8, 2_097_152, 1_310_720),
        ("mistral-7b", ALL, 32, 39_845_888, 44_040_192),
        ("gemma-2-9b", ALL, 32, 48_857_088, 59_179_008),
    ],
)
def test_parameters_of_lora(model: str, modules: Any, rank: int, A: int, B: int) -> None:
    """A and B as published; FedIT sends both up and down, in four bytes each."""
    counted = count("fedit", model, rank, modules, adapter={"head": "frozen"})
    assert (counted.parameters["A"], counted.parameters["B"]) == (A, B)
    assert counted.trained_parameters == A + B
    assert counted.bytes_up == counted.bytes_down == 4 * (A + B)


@pytest.mark.parametrize(
    ("model", "R", "factors"),
    [
        ("llama-3.2-3b", (2_822_400, 5_017_600, 7_840_000), 303.9e6),
        ("mistral-7b", (3_225_600, 5_734_400, 8_960_000), 524.3e6),
        ("gemma-2-9b", (4_233_600, 7_526_400, 11_760_000), 675.2e6),
    ],
)
def test_parameters_of_fedsb(model: str, R: tuple[int, ...], factors: float) -> None:
    """R alone goes up and down each round; B and A travel once."""
    for rank, size in zip((120, 160, 200), R, strict=True):
        counted = count("fedsb", model, rank, ALL, adapter={"head": "frozen"})
        once = counted.parameters["A"] + counted.parameters["B"]
        assert counted.trained_parameters == counted.parameters["R"] == size
        assert counted.bytes_up == counted.bytes_down == 4 * size
        assert counted.bytes_down_first == 4 * (once + size + counted.parameters["head"])
    assert once == pytest.approx(factors, abs=0.05e6)


def test_the_published_ratio() -> None:
    """Fed-SB's "230×": what 25 clients upload of rank-32 LoRA against its own R at 200."""
    lora = count("fedit", "mistral-7b", 32, ALL, adapter={"head": "frozen"})
    ours = count("fedsb", "mistral-7b", 200, ALL, adapter={"head": "frozen"})
    assert 25 * lora.bytes_up / ours.bytes_up == pytest.approx(230, rel=0.02)


# RoBERTa-base, query and value at r = 8: 24 layers of 768 × 768, and its classification head.
SIDE, LAYERS, RANK = 768, 24, 8
A = B = LAYERS * RANK * SIDE
HEAD = SIDE * SIDE + SIDE + 2 * SIDE + 2


AB, ALL_OF_IT = A + B, A + B + HEAD


@pytest.mark.parametrize(
    ("method", "own", "trained", "up", "later"),
    [
        ("fedit", {}, ALL_OF_IT, ALL_OF_IT, ALL_OF_IT),
        ("ffa", {}, B + HEAD, B + HEAD, B + HEAD),
        ("fedsa", {}, ALL_OF_IT, A, A),
        ("local", {}, ALL_OF_IT, 0, 0),
        ("fslora", {"ranks": [2]}, *[AB // 4 + HEAD] * 3),
        ("fslora", {"ranks": [2, 4]}, *[AB * 3 // 8 + HEAD] * 3),
        ("fedex", {}, ALL_OF_IT, ALL_OF_IT, ALL_OF_IT + 3 * AB),
        ("fedex", {"truncate": 5}, ALL_OF_IT, ALL_OF_IT, ALL_OF_IT + AB * 5 // 8),
        ("fedex", {"assignment": "reinit"}, ALL_OF_IT, ALL_OF_IT, ALL_OF_IT + 4 * AB),
        ("fedex", {"assignment": "local"}, ALL_OF_IT, ALL_OF_IT, ALL_OF_IT + 5 * AB),
    ],
)
def test_bytes_of_every_method(
    method: str, own: dict[str, Any], trained: int, up: int, later: int
) -> None:
    """Per client and round with K = 4: what stays does not travel again, what is frozen travels
    once, and FedEx's residual brings (K−1)·r columns (r' truncated, K·r with the whole mean, and
    the client's own r beside it under `local`)."""
    counted = count(method, "roberta-base", RANK, QV, strategy=own)
    assert counted.trained_parameters == trained
    assert counted.bytes_up == 4 * up
    assert counted.bytes_down == 4 * later
    whole = trained if method == "fslora" else ALL_OF_IT
    assert counted.bytes_down_first == 4 * whole


def test_what_stays_is_not_sent_again() -> None:
    """Also where a method's broadcast makes every tensor anew."""

    class Copying(FedSA):
        def broadcast(self, state, client, round):
            return {k: t.clone() for k, t in super().broadcast(state, client, round).items()}

    given = {
        "model": {"name": str(CONFIGS / "roberta-base")},
        "adapter": {"rank": RANK, "target_modules": QV},
    }
    counted = cost(*settings.resolve(given, lambda name: Copying))
    assert (counted.bytes_down_first, counted.bytes_down) == (4 * ALL_OF_IT, 4 * A)


def test_formats_on_the_wire() -> None:
    """bf16 halves trained parts; the residual and what is frozen stay in fp32. What bf16 loses of
    the means is 2·r columns more in FedEx's residual."""
    run = {"wire": "bf16", "clients_per_round": 3}
    ffa = count("ffa", "roberta-base", RANK, QV, run=run)
    assert (ffa.bytes_up, ffa.bytes_down_first) == (2 * (B + HEAD), 4 * A + 2 * (B + HEAD))
    fedex = count("fedex", "roberta-base", RANK, QV, run=run)
    assert fedex.bytes_down == 2 * (A + B + HEAD) + 4 * (2 + 2) * (A + B)


def test_vera() -> None:
    """Vectors b and d for each layer, one pair of projections for all of them, sent once."""
    counted = count("fedsa", "bert-base", 256, QV, adapter={"kind": "vera", "head": "frozen"})
    assert counted.parameters["d"] == LAYERS * 256 and counted.parameters["b"] == LAYERS * SIDE
    assert counted.parameters["U"] == counted.parameters["V"] == 256 * SIDE
    assert counted.bytes_up == counted.bytes_down == 4 * LAYERS * 256
    assert counted.bytes_down_first == 4 * sum(counted.parameters.values())


def test_a_model_without_configuration_is_named(tmp_path: Path) -> None:
    """A folder that holds no model: which one, and the mend."""
    with pytest.raises(UserError, match=r"config\.json"):
        count("fedit", str(tmp_path), 8, QV)


def test_what_pissa_takes_out_travels_once() -> None:
    """P and Q, as large as B and A, at first contact and never again; nothing more goes up."""
    plain = count("fedit", "bert-base", 4, QV)
    pissa = count("fedit", "bert-base", 4, QV, adapter={"init": "pissa"})
    A, B = plain.parameters["A"], plain.parameters["B"]
    assert (pissa.parameters["P"], pissa.parameters["Q"]) == (B, A)
    assert pissa.bytes_down_first == plain.bytes_down_first + 4 * (A + B)
    assert (pissa.bytes_down, pissa.bytes_up) == (plain.bytes_down, plain.bytes_up)
    assert pissa.trained_parameters == plain.trained_parameters


def test_dora_adds_a_number_for_each_output() -> None:
    """M, (m,) a layer: 12 layers' queries and values of 768; FedSA keeps it at home."""
    plain, dora = (count("fedit", "bert-base", 4, QV, adapter={"dora": d}) for d in (False, True))
    assert dora.parameters["M"] == dora.trained_parameters - plain.trained_parameters == 24 * 768
    assert dora.bytes_up - plain.bytes_up == dora.bytes_down - plain.bytes_down == 4 * 24 * 768
    plain, dora = (count("fedsa", "bert-base", 4, QV, adapter={"dora": d}) for d in (False, True))
    assert dora.bytes_up == plain.bytes_up and dora.bytes_down == plain.bytes_down


class Bounded(Strategy):
    """A norm wants values, which are not there."""

    def place(self, update, state, round):
        norm = sum(float(t.square().sum()) for t in update.tensors.values()) ** 0.5
        return {k: t / max(1.0, norm) for k, t in update.tensors.items()}


class Choosing(Bounded):
    """So do choices by value, wherever they are made."""

    def begin(self, base):
        first = base.initial()
        return {k: t if t.sum().item() else t + 1 for k, t in first.items()}

    def broadcast(self, state, client, round):
        view = super().broadcast(state, client, round)
        return {k: t * 2 if t.max() > 3 else t for k, t in view.items()}

    def upload(self, tensors, client, round):
        return {k: t for k, t in tensors.items() if t.any()}


@pytest.mark.parametrize(
    ("method", "hooks"),
    [
        (Bounded, ["aggregate"]),
        (Choosing, ["begin", "broadcast", "upload", "aggregate"]),
    ],
)
def test_a_hook_that_wants_values_is_counted_by_what_crosses(method: Any, hooks: list[str]) -> None:
    """What is sent up comes down again, as with FedIT, and a note names each hook; a comparison
    asks for no more than what is trained."""
    given = {
        "model": {"name": str(CONFIGS / "roberta-base")},
        "adapter": {"rank": RANK, "target_modules": QV},
    }
    config, strategy = settings.resolve(given, lambda name: method)
    counted, plain = cost(config, strategy), count("fedit", "roberta-base", RANK, QV)
    assert (counted.bytes_up, counted.bytes_down) == (plain.bytes_up, plain.bytes_down)
    assert [note.split()[0] for note in counted.notes] == [f"{method.__name__}.{h}" for h in hooks]
    assert not plain.notes
    assert trained_parameters(config, strategy) == counted.trained_parameters


def test_a_mistake_is_no_want_of_values() -> None:
    """It is raised, as in a run; and training's size is known without the hooks after it."""

    class Broken(Strategy):
        def aggregate(self, state, updates, round):
            return 1 / 0

    given = {
        "model": {"name": str(CONFIGS / "roberta-base")},
        "adapter": {"rank": RANK, "target_modules": QV},
    }
    config, strategy = settings.resolve(given, lambda name: Broken)
    with pytest.raises(MethodError, match=r"Broken\.aggregate raised ZeroDivisionError"):
        cost(config, strategy)
    assert trained_parameters(config, strategy) == ALL_OF_IT


def test_a_rank_or_a_scale_that_is_none_is_no_cost() -> None:
    """As a run would not start with it."""

    class Halving(Strategy):
        def rank(self, full, index, client, round):
            return full / 2

    class Unscaled(Strategy):
        def scale(self, scaling, rank):
            return float("inf")

    given = {"model": {"name": str(CONFIGS / "roberta-base")}}
    for method in (Halving, Unscaled):
        config, strategy = settings.resolve(given, lambda name, method=method: method)
        with pytest.raises(MethodError, match=rf"{method.__name__}\.(rank|scale) returned"):
            cost(config, strategy)


@pytest.fixture
def memory_of_others() -> Iterator[None]:
    """Torch fills what nobody filled with NaN, in place of what happens to lie there."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_nothing_that_lies_in_memory_is_counted(memory_of_others: None) -> None:
    """Fed-SB makes its R with values, from which updates are made that must have some too."""
    assert torch.empty(1).isnan().all(), "else this shows nothing"
    case = Case(FedSB(init="xs"), "lora-sb")
    cost_counts_what_is_sent(case)
    assert count("fedsb", "roberta-base", 4, QV, strategy={"init": "xs"}).parameters["R"]
