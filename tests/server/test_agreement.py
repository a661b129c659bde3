"""Who may take part: nodes that agree with the run, each client once."""

import pytest
from flwr.app import Error, Message

import fedlora
from fedlora import wire
from fedlora.errors import UserError
from fedlora.wire import Parcel
from server.greeting import Greeter, New
from server.identity import Claim
from server.roster import Member, Roster
from tests.federation import Meddler, Watch, federate, meddled

FILMS = 2


def hello(change):
    """Node 2 says something else of itself."""
    return meddled("query", FILMS, change, round=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ["bad", "worse"]}, "labels ['bad', 'worse'] in place of ['bad', 'good']"),
        ({"labels": ["good", "bad"]}, "labels ['good', 'bad'] in place of ['bad', 'good']"),
        ({"base": "00"}, "other weights of the base model"),
        ({"tokenizer": "00"}, "another tokenizer"),
        ({"version": "0.0.1"}, "fedlora 0.0.1 in place of"),
        ({"client": "books"}, "another node is that client already"),
        ({"rank": 5}, "its rank 5 is not within the run's adapter.rank = 4"),
        ({"rank": 2}, "its rank is 2, but FedIT needs adapter.rank = 4 on every node"),
        ({"examples": 0}, "no rows to train on"),
        ({"examples": "many"}, "does not say its client id, its examples and its rank"),
        ({"client": ""}, "does not say its client id"),
        ({"status": "error", "reason": "no file rows.csv"}, "no file rows.csv"),
    ],
)
def test_a_node_that_differs_is_left_out_and_told_why(world, tmp_path, change, reason):
    """The others go on; nobody hears of it again."""
    grid = hello(lambda parcel: parcel.facts.update(change))
    ran = federate(world, tmp_path, "fedit", grid=grid, run__rounds=1)
    (note,) = ran.watch.notes
    assert reason in note
    assert [r["client"] for r in ran.rows("client")] == ["books", "shops"]
    asked = [m.metadata.dst_node_id for m in grid.pushed if m.metadata.message_type != "query"]
    assert FILMS not in asked


def test_what_everyone_agrees_on_depends_on_it(world, tmp_path):
    """Base, tokenizer and labels each have a digest or list that changes with them alone."""
    ran = federate(world, tmp_path, "fedit", run__rounds=1)
    facts = ran.resident.identity
    assert facts["labels"] == ["bad", "good"]
    other = federate(world, tmp_path / "other", "fedit", run__rounds=1, run__seed=3)
    assert other.resident.identity == facts  # the head is drawn from the seed, and not the base


def test_a_rank_of_the_nodes_own(world, tmp_path):
    """Under FSLoRA a node may say what it can afford; it goes before the run's list."""
    grid = hello(lambda parcel: parcel.facts.update(rank=1))
    ran = federate(
        world, tmp_path, "fslora", grid=grid, run__rounds=1, strategy__ranks=[2], adapter__rank=4
    )  # fmt: skip
    members = ran.run.load(1).memory["roster"]["members"]
    assert {c: (m["rank"], m["scale"]) for c, m in members.items()} == {
        "books": (2, 4.0), "films": (1, 8.0), "shops": (2, 4.0)
    }  # fmt: skip


def test_a_method_that_asks_for_too_high_a_rank_ends_the_run(world, tmp_path):
    """That is the configuration's mistake, and everybody's."""
    with pytest.raises(UserError, match=r"rank 5, above the global adapter.rank = 4"):
        federate(world, tmp_path, "fslora", strategy__ranks=[5])


def test_too_few_clients(world, tmp_path):
    """A simulation has all its clients from the start, so it need not wait."""
    with pytest.raises(UserError, match="4 clients are needed for a round, but 3 can take part"):
        federate(world, tmp_path, "fedit", run__clients_per_round=4)


class Nodes:
    """A grid of which only the nodes matter: each answers who it is."""

    def __init__(self, inner, clients):
        self.inner, self.clients, self.asked = inner, clients, []
        self.silent, self.open = set(), {}

    def get_node_ids(self):
        return list(self.clients)

    def push_messages(self, messages):
        new = {f"message-{i}": m for i, m in enumerate(messages, start=len(self.asked))}
        self.open |= new
        self.asked += [m.metadata.dst_node_id for m in new.values()]
        return list(new)

    def pull_messages(self, ids):
        replies = []
        for id, m in self.open.items():
            m.metadata.__dict__["_message_id"] = id
            node = m.metadata.dst_node_id
            facts = {"status": "ok", "client": self.clients[node], "examples": 7, "rank": 0}
            facts["proof"] = self.clients[node] * 32  # of the owner's disk, whatever the node
            content = wire.pack(Parcel({**facts, **self.inner}))
            error = Error(5, "gone for a moment")
            replies.append(
                Message(error, reply_to=m) if node in self.silent else Message(content, reply_to=m)
            )
        self.open = {}
        return replies


@pytest.fixture
def nodes(world, tmp_path):
    """A greeter, and the grid that it looks at."""
    resident = federate(world, tmp_path, "fedit", run__rounds=1).resident
    grid = Nodes({**resident.identity, "version": fedlora.__version__}, {1: "a", 2: "b"})
    return Greeter(grid, resident, Roster(), Watch(), "run"), grid


def test_everyone_is_asked_once(nodes):
    """One message a node, however many there are and however often one looks."""
    greeter, grid = nodes
    grid.clients = {i: f"client-{i:05d}" for i in range(1, 2001)}
    greeter.greet()
    greeter.greet()
    assert sorted(grid.asked) == list(range(1, 2001))
    assert len(greeter.roster.members) == 2000


def test_a_node_that_restarted_comes_back_as_another(nodes):
    """The same client under another number, also if both happen between two looks."""
    greeter, grid = nodes
    greeter.greet()
    grid.clients = {1: "a", 9: "b"}
    greeter.greet()
    assert greeter.roster.nodes == {"a": 1, "b": 9}
    assert greeter.observer.notes == []
    assert [m.index for m in greeter.roster.members.values()] == [0, 1]


def test_who_is_gone_is_not_asked(nodes):
    """And keeps its place for when it comes back."""
    greeter, grid = nodes
    greeter.greet()
    grid.clients = {1: "a"}
    greeter.greet()
    assert greeter.roster.present() == ["a"]
    assert set(greeter.roster.members) == {"a", "b"}


def test_who_did_not_answer_is_asked_again(nodes):
    """In the next round, once."""
    greeter, grid = nodes
    grid.silent = {2}
    greeter.greet()
    assert greeter.roster.present() == ["a"]
    grid.silent = set()
    greeter.greet()
    assert greeter.roster.present() == ["a", "b"]
    assert grid.asked == [1, 2, 2]


def test_who_was_lost_is_asked_again_while_the_run_waits(world, tmp_path):
    """A node that went away over the question and is back is not waited for until the deadline."""
    resident = federate(world, tmp_path, "fedit", run__rounds=1, run__min_clients=2).resident

    class Back(Nodes):
        def get_node_ids(self):
            self.silent = set() if 2 in self.asked else {2}
            return super().get_node_ids()

    grid = Back({**resident.identity, "version": fedlora.__version__}, {1: "a", 2: "b"})
    greeter = Greeter(grid, resident, Roster(), Watch(), "run")
    greeter.greet()
    assert greeter.roster.present() == ["a", "b"]
    assert grid.asked == [1, 2, 2]


def test_a_roster_is_restored_and_shares_manifests():
    """What many clients hold is written once and then held once, so that ten thousand cost
    little."""
    manifest = {f"layer.{i}.A": (f"{i:032x}", [4, 32]) for i in range(50)}
    roster = Roster()
    roster.members = {
        f"c{i}": Member(i, 10, 4, 2.0, "0003-1", {**manifest}, 3) for i in range(100)
    } | {"new": Member(100, 1, 2, 1.0)}  # fmt: skip
    dumped = roster.dump()
    assert len(dumped["manifests"]) == 1
    assert len({id(member.manifest) for member in roster.members.values()}) == 2
    again = Roster()
    again.load(dumped)
    assert again.members == roster.members


def test_a_node_says_in_its_own_log_what_it_has_otherwise(world, tmp_path, caplog):
    """Its owner reads there why it is left out; a node that agrees logs nothing."""

    def different(message):
        parcel = wire.unpack(message.content)
        if message.metadata.dst_node_id == FILMS and "base" in parcel.facts:
            message.content = wire.pack(Parcel({**parcel.facts, "base": "00", "labels": ["no"]}))
        return message

    class Telling(Meddler):
        def push_messages(self, messages):
            return super().push_messages([different(m) for m in messages])

    federate(world, tmp_path, "fedit", grid=Telling(lambda reply: reply), run__rounds=1)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "fedlora.client"]
    assert "labels ['bad', 'good'] in place of ['no']" in line
    assert "other weights of the base model" in line


def test_round_1_waits_for_enough_clients_and_counts_them_by_name(world, tmp_path):
    """A client's index, by which FSLoRA deals ranks, is not the order of coming."""
    resident = federate(world, tmp_path, "fedit", run__rounds=1, run__min_clients=2).resident

    class Coming(Nodes):
        def get_node_ids(self):
            present = list(self.clients)
            if self.asked:
                self.clients[2] = "a"
            return present

    grid = Coming({**resident.identity, "version": fedlora.__version__}, {1: "b"})
    greeter = Greeter(grid, resident, Roster(), Watch(), "run")
    greeter.greet()
    assert {id: m.index for id, m in greeter.roster.members.items()} == {"a": 0, "b": 1}
    assert greeter.observer.notes == ["waiting for 2 clients: 1 can take part so far"]


def test_who_goes_before_round_1_is_no_member(nodes):
    """Only those that are there when it begins."""
    greeter, _ = nodes
    new = New({"examples": 1, "rank": 0}, Claim("node 8"))
    greeter.roster.nodes, greeter._new = {"gone": 8}, {"gone": new}
    greeter.greet()
    assert list(greeter.roster.members) == ["a", "b"]
