"""Methods whose training waits, on a node, for the test's word: a fault then hits mid-round.

`$HOLD` names a folder in a node's environment. While it holds a file `round-2`, training of round 2
says so by a file `round-2.reached` and waits. A server has no such folder and never waits.
"""

import os
import time
from pathlib import Path

from fedlora import Client, Round, Tensors
from fedlora.views import fingerprint, manifest
from strategies.fedex import FedEx
from strategies.fedit import FedIT
from strategies.fedsa import FedSA


def wait(round: Round) -> None:
    if round.purpose != "train" or "HOLD" not in os.environ:
        return
    file = Path(os.environ["HOLD"]) / f"round-{round.number}"
    while file.exists():
        file.with_suffix(".reached").touch()
        time.sleep(0.05)


class HeldFedEx(FedEx):
    def trains(self, round: Round) -> set[str]:
        wait(round)
        return super().trains(round)


class HeldFedSA(FedSA):
    def trains(self, round: Round) -> set[str]:
        wait(round)
        return super().trains(round)


class Digested(FedIT):
    """Notes in the node's folder a digest of what leaves it."""

    def upload(self, tensors: Tensors, client: Client, round: Round) -> Tensors:
        sent = super().upload(tensors, client, round)
        if "HOLD" in os.environ:
            Path(os.environ["HOLD"], "uploaded").write_text(fingerprint(manifest(sent)))
        return sent
