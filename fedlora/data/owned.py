"""One owner's rows, on the node that holds them: a federation of that one client."""

from dataclasses import replace
from pathlib import Path

from fedlora.config import Data
from fedlora.data import Federation, files, load, partition, sources
from fedlora.errors import UserError
from fedlora.tasks import Kind


def own(
    path: str,
    client: str,
    data: Data,
    seed: int,
    kind: Kind = "labelled",
    others: bool = False,
) -> Federation:
    """All rows of a file, in its order, or a client's rows of the bundled data that `path` names.
    Of `data` only the columns, the labels and what a client does with its rows (data.rows,
    data.holdout) count. What is held out is what a simulation of the same rows, under
    "split" or "natural" with data.public = 0 and a test file, holds out for that client.

    Args:
        others: whether rows may have labels that are none of data.labels: theirs is then
            `labelled.NONE`, and whether there are such rows is nobody's to find out.

    Raises:
        UserError: the file cannot be used, or there are no bundled rows of that client.
    """
    if path in sources.BUNDLED:
        return _bundled(path, client, data, seed, kind)
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {file} (looked from {Path.cwd()}). Correct the path.")
    rule, data = sources.RULES[kind], data.model_copy(update={"partition": "split"})
    table = rule.check(files.read(file), str(file), data, None)
    labels = rule.label_names({str(file): table}, data, others)
    rows = rule.together([table], labels)
    trained, held = partition.hold_out({client: list(range(len(rows)))}, data, seed)
    none = rows.select([])
    return Federation(
        labels=labels if kind == "labelled" else [],
        clients=[client],
        test=none,
        public=none,
        rows=rows,
        trained=trained,
        held=held,
        notes=sources.remarks([table]),
    )


def _bundled(name: str, client: str, data: Data, seed: int, kind: Kind) -> Federation:
    """As `load` divides bundled data by its own clients, whatever the run divides and how."""
    given = {"name": name, "partition": "natural", "by": "domain", "text": "text", "format": "auto"}
    whole = load(data.model_copy(update={**given, "label": "label"}), seed, kind)
    if client not in whole.clients:
        raise UserError(
            f"the bundled data {name!r} has no client {client!r}: be one of "
            f"{', '.join(whole.clients)}, or give the node a file of its own"
        )
    trained, held = {client: whole.trained[client]}, {client: whole.held[client]}
    return replace(whole, clients=[client], trained=trained, held=held)
