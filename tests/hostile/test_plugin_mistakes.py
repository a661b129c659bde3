"""Methods with mistakes, run for real: what they declare to stay, and a state that they write into.

Promise: a method is its author's code on trusted machines, but its mistakes show. What it declares
to stay on a client is not handed to what sends; a hook that writes into what it was given, keeps
something in itself, removes a part, or returns what is no tensor of finite real numbers, no rank
that a client can have, or no scale, ends the run, which names it.
"""

from pathlib import Path

import pytest

from fedlora import wire
from fedlora.tensors import part_of
from tests.federation import Meddler, World, federate

PLUGINS = "tests.hostile.plugins"


def test_what_stays_does_not_cross(world: World, tmp_path: Path) -> None:
    """An `upload` that sends all that it is given sends what is shared and nothing else."""
    seen: set[str] = set()

    def look(reply):
        if reply.metadata.message_type == "train":
            seen.update(map(part_of, wire.unpack(reply.content).tensors))
        return reply

    ran = federate(world, tmp_path, f"{PLUGINS}:Talkative", grid=Meddler(look), run__rounds=2)
    assert ran.row(2)["clients"] == 3 and ran.row(2)["dropped"] == {}
    assert seen == {"A"}


MISTAKES = {
    "Smuggling": r"Smuggling\.upload returned 'layer\.B', which a client does not send",
    "WritingUpload": r"WritingUpload\.upload wrote into ",
    "WritingPlace": r"WritingPlace\.place wrote into ",
    "WritingBroadcast": r"WritingBroadcast\.broadcast wrote into ",
    "WritingAggregate": r"WritingAggregate\.aggregate wrote into ",
    "Assigning": r"Assigning\.aggregate assigned to self\.last.*server/last",
    "Integers": r"Integers\.aggregate returned int64",
    "Removing": r"Removing\.aggregate returned None for .*\.A: that removes",
    "Infinite": r"Infinite\.aggregate returned .* not finite",
    "Blinding": r"Blinding\.broadcast returned .* not finite",
    "Halving": r"Halving\.rank returned 2 for client books, and adapter\.rank is 4.*mixed_ranks",
    "Multiplying": r"Multiplying\.rank returned 400 .* from 1 to adapter\.rank = 4",
    "Fractional": r"Fractional\.rank returned 2\.0 .* not a whole number",
    "Uncut": r"Uncut\.broadcast returned .* for books, whose rank is 2",
    "Unscaled": r"Unscaled\.scale returned nan for rank 4, not a finite number",
    "TensorScale": r"TensorScale\.scale returned tensor\(2\.\)",
    "Misspelt": r"Misspelt\.agregate is no hook.*did you mean 'aggregate'",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_the_run_and_is_named(world: World, tmp_path: Path, name: str) -> None:
    """The class and the hook, and no round is committed with what it spoilt."""
    with pytest.raises(
        Exception, match=MISTAKES[name]
    ):  # the server's own, or its clients' reasons
        federate(world, tmp_path, f"{PLUGINS}:{name}", run__rounds=1)
    assert not (tmp_path / "run/round-0001").exists()
