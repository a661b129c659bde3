"""What clients ask of the model, and how that is told to another process of the same node.

As JSON and tensors: whoever is told makes the same passes as who tells.
"""

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from fedlora.optimizers import Turn
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.training import Private
from fedlora.resident import Resident
from fedlora.stacking import Member
from fedlora.tensors import Tensors
from fedlora.training import Trained
from fedlora.wire import Parcel


class Noise(NamedTuple):
    """What makes a round of training private, and the secret that its draws come from."""

    mechanism: Mechanism
    secret: bytes

    def afresh(self) -> "Noise":
        """With another secret, for passes that are made again: none is used twice."""
        return self._replace(secret=hashlib.sha256(b"afresh" + self.secret).digest())


@dataclass(frozen=True)
class Fit:
    """Train these parts of a client's whole adapter on its rows; answered by a `Fitted`."""

    member: Member
    parts: set[str]
    noise: Noise | None = None
    steps: int | None = None  # by default the configuration's


class Fitted(NamedTuple):
    """The trained tensors, what may be told of the training, and its seconds, of which clients that
    shared passes have an equal share each."""

    tensors: Tensors
    told: Trained | Private
    seconds: float


@dataclass(frozen=True)
class Rate:
    """Score a client's own model on rows of one `split`; answered by a `Score`."""

    member: Member
    split: str


Talk = Generator[Fit | Rate, Any, Parcel]


def told(request: Fit | Rate, most: int | None) -> dict[str, Any]:
    """A request in JSON's types but for its tensors; `most` is that of its passes."""
    member = request.member
    facts = {
        "scale": member.scale,
        "seed": member.seed,
        "turn": asdict(member.turn) | {"shared": sorted(member.turn.shared)},
        "most": most,
    }
    if isinstance(request, Rate):
        return {**facts, "split": request.split}
    noise = request.noise
    secret = noise and {"mechanism": asdict(noise.mechanism), "secret": noise.secret.hex()}
    return {**facts, "parts": sorted(request.parts), "noise": secret, "steps": request.steps}


def heard(
    facts: Mapping[str, Any], tensors: Tensors, resident: Resident, client: str
) -> Fit | Rate:
    """The request that was told, over the rows of this process."""
    turn = Turn(**facts["turn"] | {"shared": frozenset(facts["turn"]["shared"])})
    split = facts.get("split", "train")
    rows = resident.encoded(client, split)
    member = Member(tensors, facts["scale"], rows, tuple(facts["seed"]), turn)
    if "split" in facts:
        return Rate(member, split)
    given = facts["noise"]
    noise = given and Noise(Mechanism(**given["mechanism"]), bytes.fromhex(given["secret"]))
    return Fit(member, set(facts["parts"]), noise, facts["steps"])
