"""The page's tables."""

from dataclasses import replace

from fedlora.page import facts
from fedlora.page.series import group
from tests.fedlora.page.made import made, scored
from tests.fedlora.rows import FOUR, private, round_row


def texts(table):
    return {name: [cell.text for cell in cells] for name, _, cells in table.rows}


def test_results_are_those_of_the_last_round_that_all_have(tmp_path):
    """Scores then, bytes and seconds until then; a column that nobody has a value for is not
    there."""
    one = made(tmp_path, "a", scored(0.5, 0.6, 0.9, seconds=10.0), run__seed=0)
    two = made(tmp_path, "b", scored(0.5, 0.7, seconds=20.0), run__seed=1)
    table = facts.results(group([one, two]))
    assert [*table.heads] == ["score", "personalised", "training loss", "up", "down", "seconds"]
    assert texts(table) == {"fedit": ["0.650", "0.500", "0.2500", "1 MB", "2 MB", "30.0"]}
    assert table.rows[0][2][0].beside == "± 0.071"  # 0.1 / √2


def test_the_epsilon_is_the_largest_of_the_seeds(tmp_path):
    """It is a bound."""
    less = {client: [x / 2 for x in own] for client, own in FOUR.items()}
    runs = [
        made(tmp_path, f"s{i}", private(spent), run__seed=i) for i, spent in enumerate((FOUR, less))
    ]
    table = facts.results(group(runs))
    assert table.rows[0][2][[*table.heads].index("ε")].text == "2.99"


def test_what_differs_and_what_is_shared(tmp_path):
    """Each setting is in one of the two, besides a run's own and those of the machine."""
    one = made(tmp_path, "a", scored(0.5), train__lr=0.5, simulation__copies=2)
    two = made(tmp_path, "b", scored(0.5), run__seed=1, simulation__copies=3)
    assert texts(facts.differences(group([one, two]))) == {"train.lr": ["0.5", "0.001"]}
    shared = facts.common([one, two])
    assert "lr" not in shared["train"] and shared["train"]["steps"] == "30"
    assert not {"name", "seed", "dir"} & shared["run"].keys()
    assert shared["simulation"]["copies"] == "2 · 3"


def test_who_was_missing(tmp_path):
    """By round, with the reason; counted for each run."""
    rows = [
        *scored(0.5),
        round_row(1, failed={"a": "it timed out"}, dropped={"b": "its norm is 7"}),
        round_row(2, failed={"a": "it timed out"}),
    ]
    run = made(tmp_path, "mine", rows)
    found = [(t.round, t.client, t.kind, t.reason) for t in facts.troubles(run)]
    assert found == [
        (1, "a", "failed", "it timed out"),
        (1, "b", "dropped", "its norm is 7"),
        (2, "a", "failed", "it timed out"),
    ]
    assert texts(facts.runs(group([run])))["mine"] == [
        "fedit",
        "0",
        "2 of 5",
        "0",
        "2",
        "1",
        "37.0",
    ]


def test_environments_are_told_apart(tmp_path):
    """With the runs that each made."""
    runs = [made(tmp_path, name, scored(0.5)) for name in "abc"]
    runs[1] = replace(runs[1], environment={"python": "2.7"})
    assert [names for names, _ in facts.environments(runs)] == ["a, c", "b"]
