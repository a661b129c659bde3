"""Time and memory of a language model's loss, forward and backward, on one core.

    python -m simulations.benchmarks.causal_loss [words …]

A Llama of two layers of 64 numbers, so that the output layer is nearly all there is; 8 rows of 256
tokens, of which half are learnt, in other places in each. Three ways, each in a process of its own:

    transformers  the model's own loss: the logits of every position at once
    columns       the logits of every position that is learnt in any row, at once
    chunks        fedlora.tasks.likelihood
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from fedlora.streams import forked
from fedlora.tasks.likelihood import IGNORED, likelihood

ROWS, TOKENS, LEARNT, REPEATS = 8, 256, 128, 3
WAYS = ("transformers", "columns", "chunks")


def made(words: int) -> tuple[Any, Tensor, Tensor]:
    """(model, ids, labels); one matrix of the first layer is trained."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    with forked(0, "causal loss"):
        model: Any = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        ids = torch.randint(3, words, (ROWS, TOKENS))
        starts = torch.randint(1, TOKENS - LEARNT, (ROWS, 1))
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    places = torch.arange(TOKENS)
    learnt = (places >= starts) & (places < starts + LEARNT)
    return model, ids, ids.where(learnt, IGNORED)


def loss(way: str, model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """The mean over tokens."""
    if way == "transformers":
        return model(input_ids=ids, labels=labels, use_cache=False).loss
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if way == "columns":
        columns = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
        logits = model(input_ids=ids, logits_to_keep=columns, use_cache=False).logits.float()
        return F.cross_entropy(logits.mT, targets[:, columns], ignore_index=IGNORED)
    where = (targets != IGNORED).flatten().nonzero()[:, 0]
    return likelihood(model, {"input_ids": ids}, where, targets.flatten()[where])[0].mean()


def measured(way: str, words: int) -> dict[str, float]:
    """Seconds of the best of some steps, and by how many MB the process grew."""
    torch.set_num_threads(1)
    model, ids, labels = made(words)
    loss("chunks", model, ids[:1, :16], ids[:1, :16])
    before, took = _peak(), []
    for _ in range(REPEATS):
        took.append(_timed(lambda: loss(way, model, ids, labels).backward()))
    return {"seconds": min(took), "megabytes": _peak() - before}


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(words: list[int]) -> None:
    print("| words | way | seconds | MB |\n|---|---|---|---|")
    for count in words:
        for way in WAYS:
            command = [sys.executable, "-m", __spec__.name, way, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {count:,} | {way} | {found['seconds']:.2f} | {found['megabytes']:,.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
    else:
        main([int(n) for n in sys.argv[1:]] or [32_000, 128_000])
