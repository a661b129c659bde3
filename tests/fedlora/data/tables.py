"""A small table, and how to write it in any format."""

import json
from pathlib import Path

from datasets import Dataset

LABELS = ["bad", "good", "so-so"]
PLACES = ["north", "south", "west"]


def rows(start=0, stop=120):
    """Rows whose texts are all different, with three labels and three places."""
    return [
        {"text": f"text {i}", "label": LABELS[i % 3], "place": PLACES[i % 7 % 3]}
        for i in range(start, stop)
    ]


def put(path: Path, table: list[dict] | Dataset) -> Path:
    """Write a table in the format that the file's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = table if isinstance(table, Dataset) else Dataset.from_list(table)
    if path.suffix == ".csv":
        data.to_pandas().to_csv(path, index=False)
    elif path.suffix == ".parquet":
        data.to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(data.to_list()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in data.to_list()))
    return path
