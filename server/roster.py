"""Who takes part, and what each client holds as far as the server knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.strategy import Client
from fedlora.views import Manifest, fingerprint
from server.identity import Claim


@dataclass
class Member:
    """One client. `index` counts clients as they joined; `tag` and `manifest` are the view that it
    acknowledged last; `own` is the round of its last accepted training, of which it uses what it
    kept; `spent` is the most that it said of its privacy budget and `unheard` how many rounds, in
    which it was asked to train, that leaves out; `holder` and `proof` are whose id this is, as
    `server.identity` knows it."""

    index: int
    examples: int
    rank: int
    scale: float
    tag: str = ""
    manifest: Manifest = field(default_factory=dict)
    own: int = 0
    spent: dict[str, float | None] = field(default_factory=dict)
    unheard: int = 0
    holder: str = ""
    proof: str = ""

    @property
    def claim(self) -> Claim:
        return Claim(self.holder, self.proof)

    def as_client(self, id: str) -> Client:
        return Client(id, self.rank, self.scale, self.examples)


class Roster:
    """Members by client id (checkpointed), and the nodes at which they are now (not)."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.nodes: dict[str, int] = {}
        self.founders = 0  # how many members there were before round 1

    def present(self) -> list[str]:
        return sorted(self.nodes)

    def dump(self) -> dict[str, Any]:
        """JSON-able; a manifest that many clients share is written once, and from then on held
        once, so that neither memory nor the time for this grows with the clients of a round."""
        manifests: dict[str, Manifest] = {}
        keys: dict[int, str] = {}  # by identity, of the manifests that are held
        members = {}
        for client, member in self.members.items():
            key = ""
            if own := member.manifest:
                key = keys.get(id(own)) or fingerprint(own)
                member.manifest = manifests.setdefault(key, own)
                keys[id(member.manifest)] = key
            members[client] = {**vars(member), "manifest": key}
        return {"members": members, "manifests": manifests, "founders": self.founders}

    def load(self, dumped: Mapping[str, Any]) -> None:
        manifests = {
            key: {name: (d, list(shape)) for name, (d, shape) in entries.items()}
            for key, entries in dumped["manifests"].items()
        }
        self.founders = int(dumped.get("founders", 0))
        self.members = {
            id: Member(**{**facts, "manifest": manifests.get(facts["manifest"], {})})
            for id, facts in dumped["members"].items()
        }
