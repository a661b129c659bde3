"""MLflow for real: a store on this machine, and a server on loopback. Skipped without its package,
which `make test-track` installs."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlora import settings
from fedlora.errors import UserError
from tests.fedlora.tracking import runs

pytest.importorskip("mlflow", exc_type=ImportError)

from mlflow import MlflowClient

SERVER = os.environ.get("FEDLORA_MLFLOW", "")  # the command of a whole MLflow, if there is one


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SQLite file, through the same environment variable as a user's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server of its own environment, with such a store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [SERVER, "server", "--backend-store-uri", uri, "--port", str(port)]
    command += ["--default-artifact-root", str(tmp_path), "--workers", "1"]
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=plain, cwd=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # while it comes up
    try:
        MlflowClient().search_experiments()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        yield process
    finally:
        process.terminate()
        process.wait()


def only() -> Any:
    """The one run of the experiment."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fedlora")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def history(run: Any) -> dict[int, dict[str, float]]:
    """The numbers by step; each is there once."""
    steps: dict[int, dict[str, float]] = {}
    for key in run.data.metrics:
        for metric in MlflowClient().get_metric_history(run.info.run_id, key):
            assert key not in steps.setdefault(metric.step, {})
            steps[metric.step][key] = metric.value
    return steps


def expected(*numbers: int) -> dict[int, Any]:
    """The same numbers, under names that MLflow admits."""
    return {
        n: pytest.approx({k.replace("ß", "_C3_9F"): v for k, v in runs.values(n).items()})
        for n in numbers
    }


def test_mlflow_keeps_what_was_committed(tmp_path: Path, store: None) -> None:
    """Every number at its round, the whole configuration, the names, and that it is over."""
    run, config = runs.create(tmp_path, "mlflow")
    assert runs.follow(run, config, 0, 1, 2) == []
    found = only()
    assert history(found) == expected(0, 1, 2)
    assert found.data.params == {k: str(v) for k, v in settings.to_flat(config).items()}
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.tags["method"] == "fedex"
    assert found.data.tags["model"] == config.model.name


def test_mlflow_goes_on_with_a_resumed_run(tmp_path: Path, store: None) -> None:
    """In the same run, and no step is there twice; a round that was committed and not told,
    because the process ended between, is made up for."""
    run, config = runs.create(tmp_path, "mlflow")
    runs.follow(run, config, 0, 1)
    runs.write(run, 2)
    runs.follow(run, config, 3)
    assert history(only()) == expected(0, 1, 2, 3)


def test_mlflow_takes_many_clients(tmp_path: Path, store: None) -> None:
    """More numbers in a round than one request may have."""
    from fedlora.tracking import mlflow, tracker

    facts = tracker.Facts(tmp_path, "id", "many", {}, {})
    values = {"round/seconds": 1.0} | {f"score/{n}": n / 2000 for n in range(2000)}
    tracked = mlflow.Tracker(facts)
    tracked.log(0, values)
    assert only().data.metrics == pytest.approx(values)


def test_an_mlflow_that_is_away_is_said_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing trains; the address is named, and who may use it is not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, config = runs.create(tmp_path, "mlflow")
    with pytest.raises(UserError, match=r"mlflow does not start: .*127\.0\.0\.1:9") as caught:
        runs.follow(run, config)
    assert "hidden" not in str(caught.value)


@pytest.mark.deployment
@pytest.mark.skipif(not shutil.which(SERVER), reason="FEDLORA_MLFLOW names no MLflow command")
def test_a_server_takes_a_run_and_may_go(
    tmp_path: Path, server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run goes on in it; when it ends in the middle, the run does not, and says so."""
    run, config = runs.create(tmp_path, "mlflow")
    runs.follow(run, config, 0, 1)
    runs.write(run, 1)
    assert runs.follow(run, config, 2) == []
    assert history(only()) == expected(0, 1, 2)

    from fedlora.tracking import Tracking

    notes: list[str] = []
    with Tracking(run, config, notes.append) as tracking:
        tracking.rows(runs.rows(3))
        server.terminate()
        server.wait()
        tracking.rows(runs.rows(4))
        tracking.rows(runs.rows(5))
    (note,) = notes
    assert note.startswith("mlflow fails: ") and note.endswith("; the run goes on without it")
