"""Who gets which row, under every partition."""

from collections import Counter

import pytest
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner

from fedlora.config import Data
from fedlora.data import load, partition, pool
from fedlora.errors import UserError
from fedlora.streams import derive, stream
from tests.fedlora.data.tables import LABELS, PLACES, put, rows

RULES = {
    "iid": {"partition": "iid", "clients": 7},
    "dirichlet": {"partition": "dirichlet", "clients": 5},
    "shards": {"partition": "shards", "clients": 4},
    "natural": {"partition": "natural", "by": "place"},
    "split": {"partition": "split"},
}
each_rule = pytest.mark.parametrize("rule", RULES)


def configured(folder, rule, **settings):
    """A configuration over 120 rows, with the file or files that the rule needs."""
    if rule == "split":
        put(folder / "split/b.csv", rows(0, 50))
        put(folder / "split/a.jsonl", rows(50, 90))
        put(folder / "split/c.parquet", rows(90, 120))
        name = folder / "split"
    else:
        name = put(folder / "all.jsonl", rows())
    return Data(name=str(name), **RULES[rule], **settings)


def texts(federation):
    """{role or (client, role): texts}, every role of every client."""
    found = {"test": federation.test["text"][:], "public": federation.public["text"][:]}
    for client in federation.clients:
        found[client, "train"] = federation.train(client)["text"][:]
        found[client, "heldout"] = federation.heldout(client)["text"][:]
    return found


@each_rule
@pytest.mark.usefixtures("global_rng_untouched")
def test_every_row_has_one_place(rule, tmp_path):
    """Training, held-out, public and test rows are disjoint and together all rows, with the labels
    that the file gave them; the global random generators are left alone."""
    federation = load(configured(tmp_path, rule), seed=3)
    count = Counter(text for part in texts(federation).values() for text in part)
    assert count == Counter(row["text"] for row in rows())
    label = {row["text"]: row["label"] for row in rows()}
    parts = [federation.test, federation.public, *map(federation.train, federation.clients)]
    for row in (row for part in parts for row in part):
        assert federation.labels[row["label"]] == label[row["text"]]
    assert federation.labels == LABELS
    assert len(federation.test) == 12
    assert len(federation.public) == 10  # a tenth of the rest, though data.public is 128
    assert all(federation.trained[client] for client in federation.clients)


@each_rule
def test_the_seed_decides(rule, tmp_path):
    """The same seed gives the same rows in the same order, another seed others."""
    data = configured(tmp_path, rule)
    assert texts(load(data, seed=1)) == texts(load(data, seed=1))
    assert texts(load(data, seed=1)) != texts(load(data, seed=2))


@pytest.mark.parametrize(
    ("rule", "settings", "drawn"),
    [
        ("iid", {"test": 0.5}, lambda f: f.test["text"][:]),
        ("natural", {"public": 9}, lambda f: f.public["text"][:]),
        ("natural", {"holdout": 0.5}, lambda f: f.held),
        ("natural", {"rows": 9}, lambda f: f.trained),
        ("iid", {}, lambda f: f.trained),
        ("dirichlet", {}, lambda f: [len(rows) for rows in f.trained.values()]),
        ("shards", {}, lambda f: [sum(f.train(c)["label"]) for c in f.clients]),
    ],
)
def test_the_seed_decides_each_draw(rule, settings, drawn, tmp_path):
    """Test, public and held-out rows, the cap's rows and each partition are drawn from the seed,
    here one at a time."""
    data = configured(tmp_path, rule, **{"test": 0, "public": 0, "holdout": 0} | settings)
    assert len({str(drawn(load(data, seed))) for seed in range(4)}) > 1


@each_rule
def test_shares_and_caps(rule, tmp_path):
    """data.rows caps a client's rows before data.holdout divides them; data.public is exact."""
    federation = load(configured(tmp_path, rule, rows=10, holdout=0.3, public=6), seed=0)
    assert len(federation.public) == 6
    for client in federation.clients:
        train, heldout = len(federation.trained[client]), len(federation.held[client])
        assert train + heldout <= 10
        assert heldout == round(0.3 * (train + heldout))


def test_client_names(tmp_path):
    """Clients are called by number, by the column's value or by their file, in order."""
    names = {rule: load(configured(tmp_path, rule), 0).clients for rule in RULES}
    assert names["iid"] == [f"client-0{i}" for i in range(7)]
    assert names["natural"] == PLACES
    assert names["split"] == ["a", "b", "c"]
    table = [row | {"place": i % 11} for i, row in enumerate(rows())]
    data = Data(name=str(put(tmp_path / "numbers.csv", table)), by="place")
    assert load(data, 0).clients == [str(i) for i in range(11)]  # 10 after 9


def test_natural_is_the_partition_of_flwr_datasets(tmp_path):
    """A client's rows are those that NaturalIdPartitioner gives it."""
    data = configured(tmp_path, "natural", test=0, public=0, holdout=0)
    federation = load(data, 0)
    partitioner = NaturalIdPartitioner("place")
    partitioner.dataset = Dataset.from_list(rows())
    for i, client in enumerate(federation.clients):
        assert federation.train(client)["text"][:] == partitioner.load_partition(i)["text"][:]
    assert federation.clients == list(partitioner.partition_id_to_natural_id.values())


@pytest.mark.parametrize("rule", ["iid", "dirichlet", "shards"])
def test_rows_are_dealt_as_flwr_datasets_deals_them(rule):
    """Client by client the rows that the partitioner's own load_partition gives, in its order."""
    data, pool = Data(**RULES[rule]), list(range(7, 107))
    labels = [row * row % 3 for row in range(120)]
    found = partition.deal(data, labels, pool, seed=5)
    order = partition.shuffled(pool, stream(5, "data", "partition"))
    seed = derive(5, "data", "partition")
    partitioner = IidPartitioner(7) if rule == "iid" else partition.rule(data, len(pool), seed)
    partitioner.dataset = Dataset.from_dict({"row": order, "label": [labels[r] for r in order]})
    expected = [partitioner.load_partition(i)["row"][:] for i in range(data.clients)]
    assert list(found.values()) == expected


def test_skew(tmp_path):
    """shards gives clients few labels each; a small concentration skews dirichlet, a large not."""

    def most_common(**settings):
        data = Data(name=str(path), partition=settings.pop("partition"), clients=4, **settings)
        federation = load(data, 0)
        counts = [Counter(federation.train(c)["label"][:]) for c in federation.clients]
        return sum(max(c.values()) for c in counts) / sum(c.total() for c in counts)

    path = put(tmp_path / "all.csv", rows(0, 1200))
    assert most_common(partition="shards", shards=1) > 0.7
    assert most_common(partition="dirichlet", concentration=0.1) > 0.7
    assert most_common(partition="dirichlet", concentration=1000.0) < 0.4
    assert most_common(partition="iid") < 0.45


def test_split_draws_from_every_file(tmp_path):
    """Under "split" every client gives the same share of test rows and as many public rows."""
    federation = load(configured(tmp_path, "split", public=6, test=0.2), seed=0)
    origin = {f"text {i}": "b" if i < 50 else "a" if i < 90 else "c" for i in range(120)}
    assert Counter(origin[t] for t in federation.public["text"]) == {"a": 2, "b": 2, "c": 2}
    assert Counter(origin[t] for t in federation.test["text"]) == {"a": 8, "b": 10, "c": 6}


def test_a_test_file_is_the_test_set(tmp_path):
    """A file test.* holds the test rows, whole, and no client's; its labels count too."""
    for rule in ("iid", "split"):
        folder = tmp_path / rule
        put(folder / "train.csv", rows(0, 60))
        put(folder / "test.csv", [*rows(60, 70), {"text": "new", "label": "vile", "place": "x"}])
        federation = load(Data(name=str(folder), partition=rule), 0)
        assert federation.test["text"][:] == [*(f"text {i}" for i in range(60, 70)), "new"]
        assert federation.labels == [*LABELS, "vile"]
        assert "test" not in federation.clients


@each_rule
def test_pool_owns_what_the_clients_own(rule, tmp_path):
    """The pooled baseline trains on the clients' training rows and on nothing else."""
    federation = load(configured(tmp_path, rule, rows=12), 0)
    pooled = pool(federation)
    assert pooled.clients == ["pooled"]
    for part in ("train", "heldout"):
        whole = Counter(t for c in federation.clients for t in getattr(federation, part)(c)["text"])
        assert Counter(getattr(pooled, part)("pooled")["text"][:]) == whole
    assert pooled.test["text"][:] == federation.test["text"][:]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"partition": "iid", "clients": 500}, "500 clients cannot share"),
        ({"partition": "dirichlet", "clients": 60, "concentration": 0.01}, "data.concentration"),
        ({"partition": "iid", "clients": 30, "holdout": 0.9}, "client-00 has .* data.holdout"),
        ({"by": "unique", "test": 0.5}, "client .* has no rows left after"),
    ],
)
def test_too_few_rows_is_said(settings, says, tmp_path):
    """A client that would have no row to train on is named, with the setting to change."""
    table = [row | {"unique": str(i)} for i, row in enumerate(rows())]
    with pytest.raises(UserError, match=says):
        load(Data(name=str(put(tmp_path / "all.csv", table)), **settings), 0)


def test_the_source_folder_is_left_alone(tmp_path):
    """Reading writes nothing beside the data."""
    data = configured(tmp_path, "split")
    before = sorted(tmp_path.rglob("*"))
    load(data, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_server_scores_on_some_of_its_rows() -> None:
    """As many as are asked for, always the same ones, whoever's clients train on what."""
    every = load(Data(), 0)
    some = load(Data(test_rows=50), 0)
    texts = some.test["text"][:]
    assert len(set(texts)) == 50 and set(texts) < set(every.test["text"])
    assert (
        load(Data(test_rows=50), 0).test["text"][:]
        == texts
        != load(Data(test_rows=50), 1).test["text"][:]
    )
    assert some.trained == every.trained and len(load(Data(test_rows=9999), 0).test) == len(
        every.test
    )
