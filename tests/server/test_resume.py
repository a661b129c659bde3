"""A run that was killed goes on to the same bits."""

import json

import pytest

from fedlora.errors import UserError
from tests.federation import Crash, Ran, Watch, crash_at, federate, same

CASES = {
    "fedex": {"run__clients_per_round": 2},
    "fedex-local": {"strategy__assignment": "local"},
    "fedsa": {"run__clients_per_round": 2},
    "fedsb": {"adapter__rank": 8, "train__lr": 5e-3},
    "fslora": {"strategy__ranks": [1, 2, 3]},
}


def run(world, root, case, **given) -> Ran:
    settings = {"run__keep": "all", **CASES[case], **given}
    return federate(world, root, case.partition("-")[0], **settings)


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_equal(one: Ran, other: Ran) -> None:
    """The same states to the bit, the same metrics but for seconds, the same idea of clients."""
    assert one.run.rounds() == other.run.rounds()
    for number in one.run.rounds():
        assert same(one.state(number), other.state(number)), f"round {number}"
        assert one.run.load(number).memory == other.run.load(number).memory
    assert timeless(one.rows()) == timeless(other.rows())
    assert timeless(one.rows("client")) == timeless(other.rows("client"))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Runs that nothing disturbed, by case."""
    done = {}

    def get(case):
        if case not in done:
            done[case] = run(world, tmp_path_factory.mktemp(case), case)
        return done[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_killed_between_rounds(world, tmp_path, whole, case):
    """Killed once round 2 was committed."""
    with pytest.raises(Crash):
        run(world, tmp_path, case, watch=crash_at(2, "committed"))
    assert_equal(run(world, tmp_path, case, resume=True), whole(case))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("phase", ["aggregate", "evaluate"])
def test_killed_when_clients_had_trained(world, tmp_path, whole, case, phase):
    """Round 3 is done again from what clients held before it: what they kept of the first
    attempt is not used."""
    with pytest.raises(Crash):
        run(world, tmp_path, case, watch=crash_at(3, phase))
    assert_equal(run(world, tmp_path, case, resume=True), whole(case))


def test_killed_before_anything_was_committed(world, tmp_path, whole):
    """The run begins anew in its directory."""
    with pytest.raises(Crash):
        run(world, tmp_path, "fedex", watch=crash_at(0, "start"))
    assert_equal(run(world, tmp_path, "fedex", resume=True), whole("fedex"))


def test_killed_twice_in_the_same_round(world, tmp_path, whole):
    """What a killed attempt left of the round does no harm, nor a line of metrics cut short."""
    for _ in range(2):
        with pytest.raises(Crash):
            run(
                world, tmp_path, "fedsa", watch=crash_at(2, "evaluate"),
                resume=(tmp_path / "run").exists(),
            )  # fmt: skip
        left = tmp_path / "run" / ".round-0002"
        left.mkdir()  # as after SIGKILL, when nothing is tidied up
        (left / "arrived-000000.safetensors").write_bytes(b"half a")
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "round", "round": 2, "failed": {}')
    assert_equal(run(world, tmp_path, "fedsa", resume=True), whole("fedsa"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", cut),
        ("state.safetensors", flip),
        ("state.safetensors", lambda path: path.unlink()),
        ("checkpoint.json", cut),
        ("checkpoint.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(world, tmp_path, whole, name, damage):
    """The round before it is used, and it says so; the end is the same."""
    with pytest.raises(Crash):
        run(world, tmp_path, "fedsa", watch=crash_at(2, "committed"), run__keep="latest")
    damage(tmp_path / "run" / "round-0002" / name)
    watch = Watch()
    again = run(world, tmp_path, "fedsa", watch=watch, resume=True)
    assert any("round 2 is damaged" in note for note in watch.notes)
    assert same(again.state(3), whole("fedsa").state(3))
    assert timeless(again.rows()) == timeless(whole("fedsa").rows())


def test_all_checkpoints_damaged_begins_anew(world, tmp_path, whole):
    """There is nothing to go on from, and it says so of each."""
    with pytest.raises(Crash):
        run(world, tmp_path, "fedex", watch=crash_at(1, "committed"))
    for number in (0, 1):
        flip(tmp_path / "run" / f"round-{number:04d}" / "state.safetensors")
    watch = Watch()
    again = run(world, tmp_path, "fedex", watch=watch, resume=True)
    assert len([n for n in watch.notes if "damaged" in n]) == 2
    assert same(again.state(3), whole("fedex").state(3))


def test_more_rounds_of_a_finished_run(world, tmp_path, whole):
    """Two rounds and then one more are three."""
    run(world, tmp_path, "fedsa", run__rounds=2)
    assert_equal(run(world, tmp_path, "fedsa", resume=True), whole("fedsa"))


def test_only_the_latest_two_checkpoints_are_kept(world, tmp_path):
    """By default; the second is there in case the last is damaged."""
    assert run(world, tmp_path, "fedex", run__keep="latest").run.rounds() == [2, 3]


def test_a_run_directory_is_never_overwritten(world, tmp_path):
    """It names the directory and the ways out."""
    run(world, tmp_path, "fedex", run__rounds=1)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(UserError, match=r"exists: choose another run.name, continue it with"):
        run(world, tmp_path, "fedex", run__rounds=1)
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_a_round_that_raises_leaves_nothing(world, tmp_path):
    """Neither a checkpoint nor the folder it was being prepared in."""
    with pytest.raises(Crash):
        run(world, tmp_path, "fedex", watch=crash_at(2, "evaluate"), run__keep="updates")
    assert sorted(p.name for p in (tmp_path / "run").glob("*round-*")) == [
        "round-0000",
        "round-0001",
    ]
    json.loads((tmp_path / "run" / "round-0001" / "checkpoint.json").read_text())
