"""What the server asks of a client, and what a client answers, as facts beside the tensors."""

from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from fedlora.strategy import Client, Purpose
from fedlora.wire import Facts, Parcel, WireError

OPTIONAL = {"own", "drop", "tails", "planned", "spent", "server_rows"}

Status = Literal["ok", "stale", "spent", "error", "wrong"]


@dataclass(frozen=True)
class Order:
    """One client's work in one phase of a round.

    `basis` names the view that the parcel's tensors build on ("" for none), `tag` the new view,
    `fingerprint` its digest. `own` is the round whose kept tensors the client is to use (0: none).
    """

    experiment: str
    round: int
    purpose: Purpose
    client: str
    rank: int
    scale: float
    examples: int
    tag: str
    basis: str
    fingerprint: str
    own: int = 0
    drop: list[str] = field(default_factory=list)
    tails: list[str] = field(default_factory=list)
    planned: int = 0  # rounds that the run expects this client to take part in, if it is private
    # of its privacy, as far as the server knows: σ, q, steps; or nothing
    spent: list[float] = field(default_factory=list)
    server_rows: bool = False  # evaluate on the server's rows too, where the client has them

    def facts(self) -> Facts:
        """Without those that are empty and may be left out."""
        return {k: v for k, v in asdict(self).items() if v or k not in OPTIONAL}

    @classmethod
    def read(cls, facts: Facts) -> "Order":
        try:
            names = [f.name for f in fields(cls) if f.name in facts or f.name not in OPTIONAL]
            return cls(**{name: facts[name] for name in names})
        except KeyError as e:
            raise WireError(f"the order lacks {e}") from None

    def as_client(self) -> Client:
        return Client(self.client, self.rank, self.scale, self.examples)


def answer(status: Status, reason: str = "", **facts: object) -> Parcel:
    """A reply without tensors: `stale` asks for the whole view, `spent` says that no privacy
    budget is left, `error` is this client's failure,
    `wrong` a mistake of the method's, which is everybody's and ends the run."""
    return Parcel({"status": status, **({"reason": reason} if reason else {}), **facts})
