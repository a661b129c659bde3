"""Rows and who owns them: `load` reads, checks and divides; a `Federation` is what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from datasets import Dataset

from fedlora.config import Data
from fedlora.data import notes, partition, sources
from fedlora.errors import UserError
from fedlora.streams import stream
from fedlora.tasks import Kind


@dataclass(frozen=True)
class Federation:
    """A data set divided among clients. Every `Dataset` has the columns text (str) and label
    (int, an index into `labels`), or those of conversations, messages (a list of role and content)
    and label; a row is in one of them only."""

    labels: list[str]  # none where rows are conversations
    clients: list[str]  # stable ids, in order
    test: Dataset  # the server's held-out rows
    public: Dataset  # the server's own rows: neither training nor test
    rows: Dataset  # the pool that `trained` and `held` count in
    trained: Mapping[str, list[int]]  # {client: rows}
    held: Mapping[str, list[int]]  # {client: rows}
    notes: list[str] = field(default_factory=list)  # what looks odd and is no error

    @property
    def examples(self) -> dict[str, int]:
        """How many rows each client trains on."""
        return {client: len(self.trained[client]) for client in self.clients}

    def train(self, client: str) -> Dataset:
        """The rows that a client trains on."""
        return self.rows.select(self.trained[client])

    def heldout(self, client: str) -> Dataset:
        """The client's own rows that it never trains on; may be empty."""
        return self.rows.select(self.held[client])


def load(data: Data, seed: int, kind: Kind = "labelled") -> Federation:
    """Read the data set that the configuration names, as rows of a kind, and divide it among
    clients.

    The same configuration and seed give the same rows. Test rows come from the data's own test
    file, else they are the share data.test of the rest; public rows are data.public of what
    remains, at most a tenth. Under "split" both are taken from each client's file, and a folder
    with the server's rows alone makes a federation of no clients.

    Raises:
        UserError: something in the data or in `data` is wrong; the message says what and where.
    """
    source = sources.read(data, kind)
    owners = source.owners
    rows = list(range(len(source.rows)))
    test: set[int] = set()
    if source.test is None:
        draw = stream(seed, "data", "test")
        for group in by_file(data, rows, owners):
            test |= partition.evenly([group], round(data.test * len(group)), draw)
        rows = [row for row in rows if row not in test]
    public: set[int] = set()
    if source.public is None:
        most = min(data.public, len(rows) // 10)
        draw = stream(seed, "data", "public")
        public = partition.evenly(by_file(data, rows, owners), most, draw)
        rows = [row for row in rows if row not in public]
    if owners is None:
        clients = partition.deal(data, source.rows["label"][:], rows, seed)
    else:
        clients = partition.grouped(rows, owners)
        for missing in sorted(set(owners) - set(clients)):
            raise UserError(
                f"client {missing} has no rows left after the server's test and public rows were "
                f"taken. Give it more rows, or lower data.test or data.public."
            )
    train, heldout = partition.hold_out(clients, data, seed)
    held = source.rows.select(sorted(test)) if source.test is None else source.test
    scored = partition.evenly([range(len(held))], data.test_rows, stream(seed, "data", "scored"))
    federation = Federation(
        labels=source.labels,
        clients=list(clients),
        test=held if data.test_rows is None else held.select(sorted(scored)),
        public=source.rows.select(sorted(public)) if source.public is None else source.public,
        rows=source.rows,
        trained=train,
        held=heldout,
    )
    return replace(federation, notes=[*source.notes, *_notes(federation)])


def _notes(federation: Federation) -> list[str]:
    """On training and test rows beside each other."""
    if not federation.clients:
        return []
    rows = [row for rows in federation.trained.values() for row in rows]
    learnt, test = federation.rows.select(rows), federation.test
    return [
        *notes.unlearnt(federation.labels, learnt, test),
        *notes.repeated(learnt, test),
        *notes.shared({client: federation.train(client) for client in federation.clients}),
    ]


def by_file(data: Data, rows: list[int], owners: list[str] | None) -> list[list[int]]:
    """The rows file by file where each client has its own, else all in one group."""
    if data.partition == "split" and owners is not None:
        return list(partition.grouped(rows, owners).values())
    return [rows]


def pool(federation: Federation) -> Federation:
    """The same rows with one owner, "pooled": what the clients train on and hold out, together.
    No clients have nothing to pool."""
    if not federation.clients:
        return federation
    return replace(
        federation,
        clients=["pooled"],
        trained={"pooled": sorted(row for rows in federation.trained.values() for row in rows)},
        held={"pooled": sorted(row for rows in federation.held.values() for row in rows)},
    )
