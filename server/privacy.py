"""Central privacy: the server's own noise, and who is drawn."""

import hashlib
import json
import math

from safetensors import SafetensorError

from fedlora import files
from fedlora.errors import UserError
from fedlora.guard import called
from fedlora.privacy import plan
from fedlora.privacy.budget import Spent, epsilon, pay, secret
from fedlora.privacy.central import noised
from fedlora.privacy.entropy import uniforms
from fedlora.privacy.ledger import Ledger
from fedlora.resident import Resident
from fedlora.runs import Row, RunDir
from fedlora.strategy import Round
from fedlora.tensorfiles import save, saved
from fedlora.tensors import Tensors, select
from fedlora.views import fingerprint, manifest
from server.roster import Roster

KEPT = ("sampled.json", "noised.safetensors")  # of central privacy, in the run directory


class Central:
    """Noise on each round's sum of clipped updates, and who is in it. A round that is repeated, as
    the server ended in its middle, has the same clients and the same noised sum.

    <run>/privacy.json           what was spent; on disk before the noised sum exists
    <run>/sampled.json           the clients of the latest round, which nobody else may know
    <run>/noised.safetensors     what came of its sum
    """

    def __init__(self, resident: Resident, run: RunDir, roster: Roster) -> None:
        self.resident, self.config, self.roster = resident, resident.config, roster
        self.ledger = Ledger(run.path / "privacy.json")
        self._sampled, self._noised = (run.path / name for name in KEPT)

    @property
    def draws(self) -> bool:
        """Whether it is chance who is asked."""
        return self.ledger.mechanism is not None and self.ledger.mechanism.sample_rate < 1

    def sample(self, present: list[str], state: Tensors, number: int) -> list[str]:
        """Each client with chance q, whoever else is in (Poisson sampling)."""
        mechanism = self.ledger.mechanism or self.ledger.plan(
            plan.server_mechanism(self.config, self.roster.founders)
        )
        key = _key(number, state)
        if (drawn := self._drawn(key)) is None:
            draws = uniforms(
                len(present), secret(self.config.privacy, "sample", number), "clients"
            ).tolist()
            drawn = [c for c, u in zip(present, draws, strict=True) if u <= mechanism.sample_rate]
            files.record(self._sampled, json.dumps({"round": key, "clients": drawn}))
        return [c for c in drawn if c in present]

    def _drawn(self, key: str) -> list[str] | None:
        """Who was drawn for this round, if it is the latest."""
        try:
            kept = json.loads(self._sampled.read_text("utf-8"))
            return [str(c) for c in kept["clients"]] if kept["round"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def noised(self, state: Tensors, mean: Tensors, count: int, number: int) -> Tensors:
        """The shared parts after a round of `count` clients with this mean. Raises UserError where
        the budget is spent."""
        mechanism, privacy = self.ledger.mechanism, self.config.privacy
        assert mechanism is not None
        key = _key(number, state, mean, count)
        if kept := self._kept(key):
            return kept
        try:
            own = pay(self.ledger, privacy, 1, "noise", number)
        except Spent as e:
            raise UserError(f"{e}; what it buys is the model of round {number - 1}") from None
        strategy = self.resident.strategy
        trains = called(strategy, "trains", Round(number, seed=self.config.run.seed))
        found = noised(
            select(state, strategy.shared & trains & self.resident.adapter.parts),
            mean,
            count,
            mechanism.sample_rate * self.roster.founders,
            mechanism.noise_multiplier * privacy.clip,
            own,
        )
        save(found, self._noised, {"round": key}, mode=0o600)
        return found

    def _kept(self, key: str) -> Tensors | None:
        """What came of this round's sum, if it is the latest and whole."""
        try:
            tensors, metadata = saved(self._noised)
        except (OSError, SafetensorError):
            return None
        return tensors if metadata.get("round") == key else None

    def close(self) -> None:
        """The run is over: who was in its last round is nobody's to know."""
        for path in (self._sampled, self._noised):
            path.unlink(missing_ok=True)

    def spent(self) -> Row:
        mechanism = self.ledger.mechanism
        found = epsilon(self.ledger, self.ledger.history, self.config.privacy)
        delta = mechanism.delta if mechanism else None
        return {"epsilon": found if math.isfinite(found) else None, "delta": delta}


def _key(number: int, state: Tensors, mean: Tensors | None = None, count: int = 0) -> str:
    facts = [str(number), str(count), *(fingerprint(manifest(t)) for t in (state, mean or {}))]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()
