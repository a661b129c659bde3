"""Whether an owner's rows and model can be used at all: found before a node joins.

Under a budget no run may find that out. `python -m clients.ready NODE_TOML`, in the node's own
environment, prints what is wrong and exits with 2, or says nothing.
"""

import os
import sys
import tomllib
from pathlib import Path

from clients.owner import Owner
from fedlora.config import MINILM, SMOLLM2
from fedlora.data import files, sources
from fedlora.errors import UserError
from fedlora.models import packaged
from fedlora.resident import Node, Resident
from fedlora.tasks import Kind

# Of each kind of rows: the task, and the model that a package may hold for it.
TASKS: dict[Kind, tuple[str, str]] = {
    "labelled": ("classification", MINILM),
    "conversations": ("instruction", SMOLLM2),
}


def verify(owner: Owner) -> None:
    """Raises UserError where a private run could find a row, the template or the model wrong."""
    _ = owner.template
    residents = [_resident(owner, kind) for kind in TASKS]
    fitting = [own for own, kind in zip(residents, TASKS, strict=True) if _fits(own, kind)]
    if not fitting:
        raise UserError(
            f"data: {owner.data} has neither a text with a label nor conversations: name its "
            "columns (text and label, or prompt and response)"
        )
    served = [own for own in fitting if owner.model or packaged(own.config.model.name)]
    if not served:
        raise UserError(
            "epsilon needs model too, a folder or a name of the hub with revision: no package that "
            "is installed here holds one for these rows"
        )
    for own in served:
        _ = own.adapter
        for row, why in sorted(own.faults.items()):
            raise UserError(
                f"data: row {row + 1} of {owner.data} {why}. Mend or remove it: under epsilon no "
                "run may find that out"
            )


def _resident(owner: Owner, kind: Kind) -> Resident:
    """As the trainer has it in a run that leaves all else as it is."""
    task, model = TASKS[kind]
    run = {
        "model.task": task,
        "model.name": model,
        "privacy.epsilon": owner.epsilon,
        "strategy.name": owner.methods[0] if owner.methods else "fedex",
    }
    device = owner.devices[0]
    if owner.parallel == "fsdp":  # no device has room for the whole model, the host has
        device, run["model.dtype"] = "cpu", "bf16"
    config, strategy = owner.resolve(run)
    node = Node(owner.data or "", owner.client or "", device)
    return Resident(owner.applied(config), strategy, node)


def _fits(own: Resident, kind: Kind) -> bool:
    path = Path(own.node.data).expanduser()
    folder = sources.BUNDLED.get(own.node.data)
    table = files.read(next(folder.glob("train.*")) if folder else path)
    return bool(sources.RULES[kind].fits(table, own.config.data))


def main() -> None:
    os.umask(0o077)  # whatever is written is nobody else's
    try:
        verify(Owner.read(tomllib.loads(Path(sys.argv[1]).read_text("utf-8"))))
    except UserError as e:
        print(e)
        sys.exit(2)


if __name__ == "__main__":
    main()
