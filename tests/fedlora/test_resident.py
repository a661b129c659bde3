"""The rows of a resident process, against the same rows tokenised by themselves."""

import pytest
import torch

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.resident import Resident


@pytest.fixture
def made(world, tmp_path):
    tree = world.tree(tmp_path, {"data.rows": 30, "data.holdout": 0.2})
    return Resident(*settings.resolve(tree, strategies.load))


def agree(made):
    """Every client's batches are those of its own rows alone."""
    federation, task = made.federation, made.task
    for split in ("train", "heldout"):
        for client in federation.clients:
            found = made.encoded(client, split)
            alone = task.encode(getattr(federation, split)(client))
            assert len(found) == len(alone) > 5
            batches = [task.batch(rows, [5, 0, 3]) for rows in (found, alone)]
            assert all(torch.equal(batches[0][k], batches[1][k]) for k in batches[1])


def test_all_clients_have_one_table_of_what_they_own(made):
    """Each of their rows is in it once and nobody else's are: not the server's, and not those past
    data.rows."""
    agree(made)
    found = [made.encoded(c, s) for c in made.federation.clients for s in ("train", "heldout")]
    whole = type(found[0]).joined(found)
    assert sorted(whole.rows) == list(range(3 * 30)) and len(whole.labels) == 3 * 30


def test_a_shared_table_has_the_same_rows(made, tmp_path, monkeypatch):
    """From the file too, for who has tokenised before as for who comes to it later."""
    agree(made)
    made.share(tmp_path / "tokens")
    agree(made)
    later = Resident(made.config, made.strategy)
    monkeypatch.setattr(later.task, "encode", None)
    later.share(tmp_path / "tokens")
    for client in made.federation.clients:
        one, other = (r.task.batch(r.encoded(client, "train"), [1]) for r in (made, later))
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_rows_that_a_model_does_not_take_are_an_error(made, monkeypatch):
    """In its own words, of whatever kind: a simulation's rows are the user's own."""

    def picky(*_: object) -> None:
        raise ValueError("Each example must contain an <eos> token.")

    made.config = made.config.model_copy(
        update={"simulation": made.config.simulation.model_copy(update={"memory": 100.0})}
    )
    _ = made.adapter
    monkeypatch.setattr(made.task, "losses", picky)
    with pytest.raises(UserError, match="does not take these rows: Each example must contain"):
        _ = made.most
