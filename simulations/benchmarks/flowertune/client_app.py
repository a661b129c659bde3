"""The client: model and adapter anew for every message."""

import os
from itertools import chain, islice, repeat
from time import perf_counter
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch.utils.data import DataLoader

from simulations.benchmarks.flowertune.dataset import load_data
from simulations.benchmarks.flowertune.model import collate, fit, get_model

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local training, from what the server sent."""
    config: Any = message.content["config"]
    model = get_model(config["rank"])
    set_peft_model_state_dict(model, message.content.array_records["arrays"].to_torch_state_dict())
    rows = load_data(config["data"], int(context.node_config["partition-id"]))
    loader: Any = DataLoader(rows, config["batch-size"], shuffle=True, collate_fn=collate)
    started = perf_counter()
    batches = islice(chain.from_iterable(repeat(loader)), config["steps"])
    loss = fit(model, batches, config["lr"])
    metrics: dict[str, Any] = {
        "loss": loss,
        "num-examples": len(rows),
        "seconds": perf_counter() - started,
        "worker": os.getpid(),
    }
    content = RecordDict(
        {
            "arrays": ArrayRecord(get_peft_model_state_dict(model, save_embedding_layers=False)),
            "metrics": MetricRecord(metrics),
        }
    )
    return Message(content=content, reply_to=message)
