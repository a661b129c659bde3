"""How much of a GPU's work is padding, by the pieces that a step is cut into.

    python -m simulations.benchmarks.padding

Steps of 16 stacked clients over the bundled rows, 16 rows of each; models of three sizes. "one" is
a pass a step, "cut" what `fedlora.pieces` makes of it. Time is by its model of a GPU's passes, in
padded tokens: nothing is measured, and no GPU is needed.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from fedlora import pieces
from fedlora.resident import Resident
from fedlora.settings import resolve
from fedlora.streams import stream
from fedlora.training import batches
from strategies import load

# Layers and weights besides embeddings: MiniLM's, Llama-3.2-1B's and Llama-3-8B's.
MODELS = {"MiniLM": (6, 10_600_000), "1B": (16, 973_000_000), "8B": (32, 6_980_000_000)}
TASKS = {"sentiment": "classification", "definitions": "instruction"}
CLIENTS = 16


def lengths(data: str) -> list[list[int]]:
    """Of each step the tokens of its rows, all clients' together, by MiniLM's tokenizer."""
    tree: dict[str, Any] = {
        "strategy": {"name": "fedit"},
        "model": {"task": TASKS[data]},
        "data": {"name": data, "clients": CLIENTS},
    }
    config, strategy = resolve(tree, load)
    resident = Resident(config, strategy)
    steps = zip(*(_drawn(resident, k) for k in resident.federation.clients), strict=True)
    return [[n for rows in step for n in rows] for step in steps]


def _drawn(resident: Resident, client: str) -> Iterator[list[int]]:
    rows, train = resident.encoded(client, "train"), resident.config.train
    for step in batches(len(rows), train, stream(0, client, "rows")):
        yield [rows.length(i) for i in step]


def model(layers: int, weights: int) -> Any:
    """What `pieces.started` asks of one."""
    config = SimpleNamespace(num_hidden_layers=layers)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, num_parameters=lambda exclude_embeddings: weights)


def passes(steps: Sequence[Sequence[int]], fixed: int) -> tuple[int, int]:
    """(passes, padded tokens) of all steps where a pass costs so much besides its tokens."""
    count = tokens = 0
    for rows in steps:
        for piece in pieces.cut(rows, pieces.Costs(fixed, pieces.GPU_MOST)):
            count += 1
            tokens += len(piece) * pieces.padded(max(rows[i] for i in piece))
    return count, tokens


def main() -> None:
    print("| rows | model | fixed | padding, one | padding, cut | passes a step | time saved |")
    print("|---|---|---|---|---|---|---|")
    for data in TASKS:
        steps = lengths(data)
        real = sum(map(sum, steps))
        for name, size in MODELS.items():
            fixed = pieces.started(model(*size))
            one, cut = passes(steps, pieces.GPU_MOST), passes(steps, fixed)
            saved = 1 - (cut[0] * fixed + cut[1]) / (one[0] * fixed + one[1])
            shares = " | ".join(f"{1 - real / tokens:.0%}" for _, tokens in (one, cut))
            print(
                f"| {data} | {name} | {fixed:,} | {shares} | {cut[0] / len(steps):.1f} "
                f"| {saved:.0%} |"
            )


if __name__ == "__main__":
    main()
