"""Promise: whatever one client sends costs that client its round, and nobody else anything.

One node of three is a liar. Its replies are changed on their way as they might have left it: facts,
names, shapes, formats, bytes, metrics. The run comes to its end, its metrics are JSON, and what the
others did is theirs alone: the state is that of the same run in which the liar merely failed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as some

from fedlora import wire
from fedlora.errors import MethodError
from fedlora.wire import Parcel, WireError
from tests.federation import Meddler, Ran, Watch, World, federate, meddled, same

LIAR = 2  # films
ROUNDS = 6  # of a run in which each round has another lie
SHORT = {"run__rounds": 1, "train__steps": 1, "data__holdout": 0.2}
EVIL = ["", "x" * 5000, "a\nfedlora-event {}", "\x1b[2J", "\u202eksa", "%00", "../../x", "é" * 90]
NUMBERS = [0, 1, -1, True, 3, 2**31, 2**62, -(2**62), 0.5, 1e308, math.nan, -math.inf]
VALUES = some.one_of(
    some.sampled_from([*EVIL, *NUMBERS, b"\xff", [1, 2], ["a", "b\n"], [1e308]]), some.text()
)
STATUS = some.sampled_from(["ok", "wrong", "stale", "spent", "error", "", 7, b"ok", ["ok"]])


def a_round_each(lies: some.SearchStrategy[Any]) -> Any:
    """A test of one run with a lie a round, for two draws of lies."""

    def decorated(test: Callable[..., None]) -> Any:
        drawn = given(some.lists(lies, min_size=ROUNDS, max_size=ROUNDS))(test)
        quick = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
        once = [Phase.generate]  # a run is too dear to be tried again and again for a smaller lie
        return settings(max_examples=2, suppress_health_check=quick, phases=once)(drawn)

    return decorated


def liar(world: World, root: Path, change: Callable[[Message], Any], **given: Any) -> Ran:
    """A run in which the liar's replies are changed."""

    def meddle(reply: Message) -> Any:
        return change(reply) if reply.metadata.src_node_id == LIAR else reply

    return federate(world, root, "fedit", grid=Meddler(meddle), **{**SHORT, **given})


def trained(change: Callable[[Message, int], None]) -> Callable[[Message], Message]:
    """Changes the liar's reply to an order to train; it is told which round's, from 0."""

    def meddle(reply: Message) -> Message:
        if reply.metadata.message_type == "train":
            change(reply, int(reply.metadata.group_id) - 1)
        return reply

    return meddle


@pytest.fixture(scope="module")
def failing(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run in which the liar says in each round that it failed, and no more."""

    def fail(reply: Message, _: int) -> None:
        reply.content = wire.pack(Parcel({"status": "error", "reason": "no"}))

    folder = tmp_path_factory.mktemp("run")
    return liar(world, folder, trained(fail), run__rounds=ROUNDS, run__keep="all")


def strict(ran: Ran) -> list[dict[str, Any]]:
    """The metrics, read by a reader that knows no NaN."""

    def no(constant: str) -> float:
        raise AssertionError(f"{constant} in metrics.jsonl")

    lines = ran.run.metrics.read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=no) for line in lines]


def unharmed(ran: Ran, failing: Ran) -> None:
    """Everybody else's result is as if the liar had failed."""
    last = ran.config.run.rounds
    assert same(ran.state(last), failing.state(last))
    for row in strict(ran):
        if row["kind"] == "client" or row["round"] == 0:
            continue
        assert row["clients"] == 2 and set(row["failed"] | row["dropped"]) == {"films"}
        for text in (row["failed"] | row["dropped"]).values():
            assert text.isprintable() and len(text) <= 300


LIES = some.fixed_dictionaries(
    {key: VALUES for key in ("reason", "experiment", "lost", "own", "client")}
)


@a_round_each(some.tuples(STATUS, LIES, some.dictionaries(some.text(min_size=1), VALUES)))
def test_facts(
    world: World, tmp_path_factory: pytest.TempPathFactory, failing: Ran, lies: list[Any]
) -> None:
    """Any status with any reason, run and further facts, but for those that are true."""

    def change(reply: Message, number: int) -> None:
        status, known, more = lies[number]
        reply.content["facts"] = ConfigRecord({**more, **known, "status": status})

    folder = tmp_path_factory.mktemp("run")
    unharmed(liar(world, folder, trained(change), run__rounds=ROUNDS), failing)


SHAPES = some.lists(
    some.sampled_from([0, 1, 2, 3, 32, -1, 2**31, 2**40, 2**62, 2**63 - 1]), max_size=12
)
ARRAYS = some.builds(
    lambda dtype, shape, stype, data: Array(
        dtype=dtype, shape=tuple(shape), stype=stype, data=data
    ),
    some.sampled_from(["float32", "float16", "bfloat16", "float64", "object", "", "int8\n"]),
    SHAPES,
    some.sampled_from([wire.RAW, wire.RAW, "numpy.ndarray", "torch.pickle", ""]),
    some.sampled_from([b"", bytes(4), bytes(4096), b"\xff" * 4096, b"\x80\x02."]),
)


@a_round_each(some.tuples(some.booleans(), some.dictionaries(some.text(), ARRAYS, max_size=4)))
def test_tensors(
    world: World, tmp_path_factory: pytest.TempPathFactory, failing: Ran, lies: list[Any]
) -> None:
    """Any names, formats, shapes and bytes, in place of what was asked for or of a part of it."""

    def change(reply: Message, number: int) -> None:
        inside, arrays = lies[number]
        record = reply.content["tensors"]
        if inside:  # under the right names, beside tensors that are right
            wrong = [*arrays.values(), Array("float32", (3,), wire.RAW, bytes(12))]
            arrays = {**record, **dict(zip(record, wrong, strict=False))}
        reply.content["tensors"] = ArrayRecord(arrays)

    folder = tmp_path_factory.mktemp("run")
    unharmed(liar(world, folder, trained(change), run__rounds=ROUNDS), failing)


@given(SHAPES, some.sampled_from([b"", bytes(4), bytes(96)]))
@example([0, 2**62, 2**62], b"")
@example([2**40, 2**40, 0], b"")
@example([2**63 - 1, 2, 0], b"")
@settings(max_examples=200)
def test_an_array_is_read_or_refused(shape: list[int], data: bytes) -> None:
    """Shapes whose product overflows, of too many dimensions, negative, or empty with a stride
    that no machine has: a WireError, and never another one."""
    content = wire.pack(Parcel())
    content["tensors"] = ArrayRecord({"x": Array("float32", tuple(shape), wire.RAW, data)})
    try:
        found = wire.unpack(content).tensors["x"]
    except WireError:
        return
    assert list(found.shape) == shape and found.numel() * 4 == len(data)


NAMES = ["loss", "seconds", "score", "rows", "global", "global_loss", "epsilon", "evil\nname"]
METRICS = some.dictionaries(some.sampled_from(NAMES), some.sampled_from(NUMBERS[4:]), min_size=1)


@a_round_each(METRICS)
def test_metrics(
    world: World, tmp_path_factory: pytest.TempPathFactory, lies: list[dict[str, float]]
) -> None:
    """Scores above 1, more rows than it can have, 1e308: what no honest client says is not heard,
    so that means are means of what the others said, and of possible values."""

    def change(reply: Message) -> Message:
        if reply.metadata.message_type in ("train", "evaluate"):
            more = lies[int(reply.metadata.group_id) - 1]
            reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **more})
        return reply

    ran = liar(world, tmp_path_factory.mktemp("run"), change, run__rounds=ROUNDS)
    rows = strict(ran)
    for row in rows:
        for key in ("score", "personalised"):
            assert 0 <= (row.get(key) or 0) <= 1
        for key in ("loss", "test_loss", "personalised_loss", "seconds"):
            assert 0 <= (row.get(key) or 0) <= 1e9
        assert not any("evil" in key for key in row)
    assert all(row["personalised"] is not None for row in ran.rows()[1:])


def test_a_liars_rows_do_not_outweigh_the_others(world: World, tmp_path: Path) -> None:
    """A score counts by the rows behind it: more than a client can have held out count nothing."""

    def boast(parcel: Parcel) -> None:
        parcel.metrics |= {"rows": 1e8, "score": 1.0}

    grid = meddled("evaluate", LIAR, boast, 1)
    boasted = federate(world, tmp_path, "fedit", grid=grid, **SHORT).row(1)["personalised"]
    grid = meddled("evaluate", LIAR, lambda parcel: parcel.metrics.clear(), 1)
    silent = federate(world, tmp_path / "silent", "fedit", grid=grid, **SHORT)
    assert boasted == silent.row(1)["personalised"] < 1


def test_a_liar_cannot_blame_the_method(world: World, tmp_path: Path, failing: Ran) -> None:
    """`status = "wrong"` is one client's word: it costs it the round. Alone in a round too; where
    all that are asked say so and nobody ever gave an update, the method is at fault and the run
    ends with the reasons."""

    def blame(reply: Message, _: int = 0) -> None:
        reply.content = wire.pack(Parcel({"status": "wrong", "reason": "it is\nall broken"}))

    ran = liar(world, tmp_path, trained(blame))
    unharmed(ran, failing)
    assert ran.row(1)["failed"] == {"films": "it is all broken"}

    one = {"run__clients_per_round": 1, "run__rounds": 3, "run__seed": 13}
    alone = liar(world, tmp_path / "alone", trained(blame), **one)
    asked = {r["round"]: r["client"] for r in alone.rows("client")}
    assert asked[1] == "films", "another seed: the liar is to be asked first"
    assert [r["clients"] for r in alone.rows()][1:] == [int(asked[n] != "films") for n in asked]

    with pytest.raises(MethodError, match=r"client books: it is all broken\nclient films: "):
        federate(world, tmp_path / "all", "fedit", grid=Meddler(trained(blame)), **SHORT)


def test_neither_can_two(world: World, tmp_path: Path) -> None:
    """Where one is asked a round, whoever is drawn first: the run goes on until each that is there
    has blamed the method."""

    def blame(reply: Message) -> Message:
        if reply.metadata.message_type == "train" and reply.metadata.src_node_id != 1:
            reply.content = wire.pack(Parcel({"status": "wrong", "reason": "no"}))
        return reply

    for seed in (11, 19):  # which draw both before anybody else
        given = {"run__rounds": 3, "run__clients_per_round": 1, "run__seed": seed}
        ran = federate(
            world, tmp_path / str(seed), "fedit", grid=Meddler(blame), **{**SHORT, **given}
        )
        assert {r["client"] for r in ran.rows("client")} == {"books", "films", "shops"}


def test_an_error_in_flowers_own_words(world: World, tmp_path: Path, failing: Ran) -> None:
    """A node may answer with an error of any code and text."""

    def change(reply: Message) -> Message:
        if reply.metadata.message_type != "train":
            return reply
        asked = Message(reply.content, LIAR, "train")
        asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        broken = Message(Error(3, "\x1b[31mboom\n" * 999), reply_to=asked)
        broken.metadata.__dict__["_src_node_id"] = LIAR
        return broken

    unharmed(liar(world, tmp_path, change), failing)


def test_huge_values_break_nobodys_arithmetic(world: World, tmp_path: Path) -> None:
    """Values that are finite, and whose products are not: with FedEx, which multiplies and
    decomposes all updates, the others' round goes on."""

    def blow_up(parcel: Parcel) -> None:
        parcel.tensors = {k: torch.full_like(t, 3e38) for k, t in parcel.tensors.items()}

    grid = meddled("train", LIAR, blow_up, 1)
    ran = federate(world, tmp_path, "fedex", grid=grid, watch=Watch(), **SHORT)
    assert list(ran.row(1)["dropped"]) == ["films"] and ran.row(1)["clients"] == 2
    assert all(bool(torch.isfinite(t).all()) for t in ran.state(1).values())
