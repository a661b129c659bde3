"""MLflow: a server, or a store on this machine. Its own environment variables say where:
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME ("fedlora" by default).

The MLflow run is found again by a tag that has the experiment's id, so that a resumed run goes on
in it. MLflow keeps every value that it was given: rounds that it has are not given again.
"""

import os
import time
from collections.abc import Mapping
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from fedlora.tracking import tracker

TAG, LAST = "fedlora.experiment", "fedlora.round"
LETTERS = 250  # of a name
BATCH = {"metrics": 1000, "params": 100}  # as many as one request may have
# By default a server that is away is tried for minutes, in which the run would stand still.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


class Tracker(tracker.Tracker):
    def __init__(self, facts: tracker.Facts) -> None:
        self.client = MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedlora")
        found = self.client.search_runs([experiment], f"tags.`{TAG}` = '{facts.id}'")
        self.run = found[0].info.run_id if found else self._create(experiment, facts)
        self.client.update_run(self.run, status="RUNNING")
        self.last = int(self.client.get_run(self.run).data.tags.get(LAST, -1))

    def log(self, round: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_name(k), float(v), now, round) for k, v in values.items()]
        self._batches("metrics", metrics)
        self.client.set_tag(self.run, LAST, str(round))  # it counts as given once all arrived

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if done else "FAILED")

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def _create(self, experiment: str, facts: tracker.Facts) -> str:
        tags = {TAG: facts.id, **facts.tags}
        run = self.client.create_run(experiment, run_name=facts.name, tags=tags).info.run_id
        self.run = run
        self._batches("params", [Param(k, str(v)) for k, v in facts.settings.items()])
        return run

    def _batches(self, kind: str, items: list[Metric] | list[Param]) -> None:
        size = BATCH[kind]
        for i in range(0, len(items), size):
            self.client.log_batch(self.run, **{kind: items[i : i + size]})


def _name(key: str) -> str:
    """MLflow admits few characters, and few of them: others are written as in an address, with _
    for %."""
    group, _, name = key.partition("/")
    return f"{group}/{quote(name, safe=' :').replace('%', '_')}"[:LETTERS]
