"""Run the app on Flower's Ray engine, one core an actor.

`--log FILE` gets a line of JSON a round: when it ended (Unix seconds), and of each client the
process that served it and how many seconds its training steps took.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import get_peft_model_state_dict

from simulations.benchmarks.flowertune.client_app import app as client_app
from simulations.benchmarks.flowertune.model import get_model


def noted(log: Path, replies: list[RecordDict]) -> MetricRecord:
    """A round's line in the log, as its replies have all been averaged."""
    metrics: list[Any] = [reply["metrics"] for reply in replies]
    clients = [{"worker": m["worker"], "seconds": m["seconds"]} for m in metrics]
    with log.open("a") as file:
        file.write(json.dumps({"ended": time.time(), "clients": clients}) + "\n")
    return MetricRecord({"loss": sum(m["loss"] for m in metrics) / len(metrics)})


def server_app(given: argparse.Namespace) -> ServerApp:
    """FedAvg over all clients in every round."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=given.clients,
            min_available_nodes=given.clients,
            train_metrics_aggr_fn=lambda replies, _: noted(given.log, replies),
        )
        model = get_model(given.rank)
        config = {
            "data": str(given.data),
            "rank": given.rank,
            "steps": given.steps,
            "batch-size": given.batch_size,
            "lr": given.lr,
        }
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(
                get_peft_model_state_dict(model, save_embedding_layers=False)
            ),
            train_config=ConfigRecord(config),
            num_rounds=given.rounds,
        )

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="A Flower app as its users write them.")
    parser.add_argument("--data", type=Path, required=True, help=".jsonl: text, label, client")
    parser.add_argument("--log", type=Path, required=True)
    for name, default in {"clients": 4, "rounds": 3, "steps": 5, "batch-size": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--cores", type=int, default=2, help="as many Ray actors")
    given = parser.parse_args()
    run_simulation(
        server_app(given),
        client_app,
        num_supernodes=given.clients,
        backend_config={
            "init_args": {"num_cpus": given.cores, "num_gpus": 0},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()
