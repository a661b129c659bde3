"""What stacked passes and Fed-SB's start cost at the size of large models, by shapes.

    python -m simulations.benchmarks.stacks --json stacks.json

Entering a pass is measured on a Llama of 32 blocks with tiny layers, where Python is all that
there is. Fed-SB's start is measured on one block with Llama-3-8B's own shapes and taken times 32.
On one thread, in the process's own time; about three minutes. Nothing is downloaded.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.adapters.gradients import gradients
from fedlora.adapters.stack import Stack
from fedlora.lowrank import svd
from fedlora.streams import forked, stream
from simulations.benchmarks.tables import show, target

CLIENTS, REPEATS = 8, 5
EQUAL = [k for k in range(CLIENTS) for _ in range(2)]  # owners of rows: two of each client
UNEQUAL = [k for k in range(CLIENTS) for _ in range(1 + k % 3)]
BLOCKS, RANK = 32, 120  # 8B's blocks; the least rank of Fed-SB's paper on language models
TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=BLOCKS,
    num_attention_heads=2,
    num_key_value_heads=1,
)
# Llama-3-8B's own sizes, from its published configuration, but for its words and its blocks.
BLOCK = LlamaConfig(
    vocab_size=64,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=1,
    num_attention_heads=32,
    num_key_value_heads=8,
)
ROWS, TOKENS = 8, 32  # of a pass of the block
ENTERING, TIMES, LOST = 12.0, 5.0, 1e-3  # to reach: ms, times, the share of the norm

NOTES = [
    f"Entering: a Llama of {BLOCKS} blocks with all seven linears adapted (224 layers), hidden size"
    f" 16, {CLIENTS} clients; medians of {REPEATS}. Swapping the layers' forwards happens once a"
    " training, entering once a pass.",
    f"Fed-SB's start: fp32, rank {RANK}; one block of Llama-3-8B's shapes. In a pass of its own a"
    " layer needs the whole model forward and backward, so that the block's seven are seven passes"
    " of it, and the model's 224 are 224.",
    "Signs: of standard normal numbers, whose spectrum is as flat as one gets; a gradient's decays,"
    " which is easier. Lost: how much larger the error of the rank-r approximation is than the best"
    " one's, |W - B R A| over it, less one; the truth is from the eigenvalues of W W^T in float64.",
]


def seconds(work: Callable[[], Any]) -> float:
    start = process_time()
    work()
    return process_time() - start


def llama(shape: LlamaConfig, rank: int, kind: str) -> Adapter:
    with forked(0, "llama"):
        model = LlamaForCausalLM(shape).eval()
    chosen = config.Adapter(kind=kind, rank=rank, target_modules="all-linear")
    return Adapter(model, chosen, 0)


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """(rows,): whatever depends on every layer."""
    found: Tensor = model(input_ids=ids).logits.square().mean((1, 2))
    return found


def entering() -> Iterator[tuple[str, float]]:
    """(what, its milliseconds)."""
    adapter = llama(TINY, 2, "lora")
    stack = Stack(adapter, [adapter.initial()] * CLIENTS, [1.0] * CLIENTS, {"A", "B"})
    swapped: list[float] = []
    entered: list[list[float]] = [[], []]
    passed: list[float] = []
    for _ in range(REPEATS):
        start = process_time()
        with stack.passes() as through:
            swapped.append(process_time() - start)
            for owner, times in zip((EQUAL, UNEQUAL), entered, strict=True):
                start = process_time()
                with through(owner):
                    times.append(process_time() - start)
                    ids = torch.zeros(len(owner), 4, dtype=torch.int64)
                    losses(adapter.model, ids).sum().backward()
                passed.append(process_time() - start)
    yield "swapping the layers, once a training", 1e3 * median(swapped)
    yield "entering a pass of equal shares", 1e3 * median(entered[0])
    yield "entering a pass of unequal shares", 1e3 * median(entered[1])
    yield "a whole pass, forward and backward", 1e3 * median(passed)


def start_gradients() -> dict[str, float]:
    """Seconds of a pass of the block in which all layers share it, and of one a layer."""
    adapter = llama(BLOCK, 2, "lora-sb")
    ids = torch.randint(1, 60, (ROWS, TOKENS), generator=stream(0, "rows"))
    modules = list(adapter.shapes)
    together = partial(gradients, adapter, modules, [ids], losses)
    together()
    each = [partial(gradients, adapter, [m], [ids], losses) for m in modules]
    return {"together": seconds(together), "one by one": sum(map(seconds, each))}


def decomposed(m: int, n: int) -> tuple[float, float]:
    """Seconds of the SVD of a sign matrix (m, n), and how much larger the error of what comes of it
    is than the best one's, relative."""
    W = torch.randn(m, n, generator=stream(0, "signs", m, n)).sign()
    start = process_time()
    U, S, V = svd(W, RANK)
    taken = process_time() - start
    small = (W if m <= n else W.T).double()
    values = torch.linalg.eigvalsh(small @ small.T)
    best = values[:-RANK].sum().sqrt()
    error = (W.double() - (U.double() * S.double()) @ V.double()).norm()
    return taken, float(error / best - 1)


def measure(quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tables and targets."""
    entered = dict(entering())
    rows = [[what, f"{ms:.1f}"] for what, ms in entered.items()]
    tables = [{"title": "Entering a stacked pass", "columns": ["what", "ms"], "rows": rows}]
    slowest = max(ms for what, ms in entered.items() if what.startswith("entering"))
    targets = [target("entering a pass, 224 layers", f"≤ {ENTERING:g} ms", f"{slowest:.1f} ms",
                       slowest <= ENTERING)]  # fmt: skip
    if quick:
        return tables, targets
    found = start_gradients()
    layers = _layers()
    svds = {shape: decomposed(*shape) for shape in dict.fromkeys(layers)}
    whole = BLOCKS * sum(svds[shape][0] for shape in layers)
    rows = [[f"gradients of {ROWS * TOKENS} tokens, {what}", f"{s:.1f}", "–"]
            for what, s in found.items()]  # fmt: skip
    rows += [[f"SVD of signs {m} × {n}", f"{s:.1f}", f"{lost:.1e}"]
             for (m, n), (s, lost) in svds.items()]  # fmt: skip
    rows.append([f"SVDs of all {BLOCKS * len(layers)} layers", f"{whole:.0f}", "–"])
    tables.append(
        {
            "title": f"Fed-SB's start by one block of Llama-3-8B, rank {RANK}",
            "columns": ["what", "s", "lost"],
            "rows": rows,
        }
    )
    faster = found["one by one"] / found["together"]
    lost = max(lost for _, lost in svds.values())
    targets += [
        target("layers that share passes: faster than one by one, of one block alone",
                f"≥ {TIMES:g}×", f"{faster:.1f}×", faster >= TIMES),
        target("SVD of signs: error over the best one's", f"≤ {LOST:.0e} more", f"{lost:.1e} more",
                lost <= LOST),
    ]  # fmt: skip
    return tables, targets


def _layers() -> list[tuple[int, int]]:
    """(m, n) of the seven linears of the block."""
    with torch.device("meta"):
        block = LlamaForCausalLM(BLOCK).model.layers[0]
    return [(m.out_features, m.in_features) for m in block.modules() if isinstance(m, nn.Linear)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="Stacked passes and Fed-SB's start, by shapes.")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--quick", action="store_true", help="entering alone: a check")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = perf_counter()
    tables, targets = measure(given.quick)
    for made in tables:
        show(made)
    for t in targets:
        Console().print(f"{t['what']}: {t['measured']}, to reach {t['target']}")
    told = {
        "benchmark": "stacks",
        "title": "Stacked passes and Fed-SB's start, by shapes",
        "seconds": perf_counter() - start,
        "tables": tables,
        "targets": targets,
        "notes": NOTES,
    }
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
