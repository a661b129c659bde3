"""With run.keep = "updates": everything sent and received in a round, to check a method by hand."""

from pathlib import Path
from urllib.parse import quote

from safetensors.torch import load_file

from fedlora import profile
from fedlora.tensorfiles import save
from server.inbox import Inbox
from server.rounds import Phase


@profile.timed("checkpoint")
def keep_updates(phase: Phase, inbox: Inbox, folder: Path) -> None:
    """A file for the view of each client that was asked, and one for each update that was
    accepted, with its weight, rank and scale."""
    weights = inbox.weights()
    for id in phase.sent:
        save(phase.recalled(id), folder / f"sent-{_plain(id)}.safetensors")
    for id, arrival in inbox.arrivals.items():
        assert arrival.path  # as each has one where updates are kept
        client = arrival.client
        facts = {"weight": weights[id], "rank": client.rank, "scale": client.scale}
        metadata = {"client": id} | {k: str(v) for k, v in facts.items()}
        save(load_file(arrival.path), folder / f"update-{_plain(id)}.safetensors", metadata)


def _plain(id: str) -> str:
    return quote(id, safe=" ")
