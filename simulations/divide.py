"""Write each client's rows into a file of its own, as an owner has them: for real nodes.

    python -m simulations.divide DIR [CONFIG.toml] [section.key=value …]

DIR gets one `<client>.jsonl` a client, with all its rows, and `test.jsonl`, the server's held-out
rows. The columns are text and label (its name), or messages where rows are conversations. The
server's public rows are in none of them.

Rows keep the data's order, by which a client's held-out rows are drawn. So under the partitions
"natural" and "split" a node that reads its file has exactly the rows that the simulation gives that
client, trained on and held out; under the others it holds out other rows of the same client.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset

import strategies
from fedlora import data, files, settings, tasks
from fedlora.config import Data
from fedlora.errors import UserError
from fedlora.tasks import Kind


def divide(folder: Path, config: Data, seed: int, kind: Kind = "labelled") -> list[str]:
    """Write the files and return the clients.

    Raises:
        UserError: the data is wrong, a client's id is no file name, or a file is there already.
    """
    # Held out later, by the node: until then all rows of a client are in one list, in order.
    whole = config.model_copy(update={"rows": None, "holdout": 0.0})
    federation = data.load(whole, seed, kind)
    tables = {client: federation.train(client) for client in federation.clients}
    for client in tables:
        if not re.fullmatch(r"\w[\w .@+-]*", client) or client == "test":
            raise UserError(f"the client {client!r} cannot be the name of a file: rename it")
    tables["test"] = federation.test
    paths = {name: folder / f"{name}.jsonl" for name in tables}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path} exists: choose another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        files.write(paths[name], "".join(lines(rows, federation.labels)))
    return federation.clients


def lines(rows: Dataset, labels: list[str]) -> Iterable[str]:
    """One JSON object a row, labels by name; conversations have none."""
    for row in rows:
        talk = {k: row[k] for k in ("messages",) if k in row}
        told = talk or {"text": row["text"], "label": labels[row["label"]]}
        yield json.dumps(told, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    folder, *given = arguments
    path = Path(given.pop(0)) if given and "=" not in given[0] else None
    try:
        config, _ = settings.resolve(settings.read(path, given), strategies.load)
        kind = tasks.load(config.model.task).kind
        clients = divide(Path(folder), config.data, config.run.seed, kind)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{len(clients)} clients in {folder}: {', '.join(clients)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
