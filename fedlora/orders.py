"""What the server asks of a client, and what a client answers, as facts beside the tensors."""

from dataclasses import asdict, field, fields
from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from fedlora.strategy import Client, Purpose
from fedlora.wire import Facts, Parcel, WireError

OPTIONAL = {"own", "drop", "tails", "planned", "spent", "server_rows"}

Status = Literal["ok", "stale", "spent", "error", "wrong", "system"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]  # becomes part of file names


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Order:
    """One client's work in one phase of a round.

    `basis` names the view that the parcel's tensors build on ("" for none), `tag` the new view,
    `fingerprint` its digest. `own` is the round whose kept tensors the client is to use (0: none).
    """

    experiment: Name
    round: NonNegativeInt
    purpose: Purpose
    client: str
    rank: PositiveInt
    scale: Annotated[PositiveFloat, Field(allow_inf_nan=False)]
    examples: PositiveInt
    tag: Name
    basis: Name | Literal[""]
    fingerprint: str
    own: NonNegativeInt = 0
    drop: list[str] = field(default_factory=list)
    tails: list[str] = field(default_factory=list)
    # if the run is private: the rounds that it expects this client to take part in, and, of its
    # privacy, what the server knows (σ, q, steps; or nothing)
    planned: NonNegativeInt = 0
    spent: Annotated[list[float], Field(max_length=3)] = field(default_factory=list)
    server_rows: bool = False  # evaluate on the server's rows too, where the client has them

    def facts(self) -> Facts:
        """Without those that are empty and may be left out."""
        return {k: v for k, v in asdict(self).items() if v or k not in OPTIONAL}

    @classmethod
    def read(cls, facts: Facts) -> "Order":
        """Raises WireError, naming the fact, where one is missing or not what it is to be."""
        known = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
        try:
            return cls(**known)
        except ValidationError as e:
            wrong = e.errors()[0]
            raise WireError(f"the order's {wrong['loc'][0]}: {wrong['msg']}") from None

    def as_client(self) -> Client:
        return Client(self.client, self.rank, self.scale, self.examples)


def answer(status: Status, reason: str = "", **facts: object) -> Parcel:
    """A reply without tensors: `stale` asks for the whole view, `spent` says that no privacy
    budget is left, `error` is this client's failure,
    `wrong` a mistake of the method's, which is everybody's and ends the run; so does `system` in a
    simulation, whose machine is everybody's: its disk is full, say."""
    return Parcel({"status": status, **({"reason": reason} if reason else {}), **facts})
