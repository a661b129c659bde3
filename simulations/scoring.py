"""A finished run's model on rows: the run's own test rows, or others."""

from typing import Any

from datasets import Dataset

from fedlora import answers, evaluation, report, settings
from fedlora.config import Config
from fedlora.data import sources
from fedlora.errors import UserError
from fedlora.generation import Speaker
from fedlora.likeness import likeness
from fedlora.resident import Resident
from fedlora.runs import RunDir
from simulations import results


def evaluate(
    run: str, given: settings.Tree, data: str | None, client: str | None
) -> dict[str, Any]:
    """Scores by name: fractions, the loss in nats; those of answers where generate.rows says so.

    Args:
        given: settings of data and generate that replace the run's.
        data: a name as data.name, all of whose rows are taken; None: the run's test rows.
        client: whose own model; None: the global one.

    Raises:
        UserError: there is no such run, client or data, or no rows to score on.
    """
    if wrong := set(given) - {"data", "generate"}:
        raise UserError(
            f"only settings of data and generate can be given here, not of {', '.join(wrong)}: the "
            "model is the run's"
        )
    opened = RunDir.open(run)
    resident = results.made(opened, given, rows=data is None)
    rows = resident.federation.test if data is None else _rows(resident, data)
    if not len(rows):
        raise UserError("the run has no test rows: name some with --data")
    model, encoded = resident.adapter.model, resident.task.encode(rows)
    most = resident.bound(encoded)  # before an adapter is loaded, which does not outlast it
    round = results.speak(resident, opened, client)
    found = evaluation.evaluate(resident.task, model, encoded, most)
    told: dict[str, Any] = {
        "model": f"client {client}" if client else "global",
        "round": round,
        "rows": found.rows,
        "score": found.score,
        "loss": found.loss,
    }
    config: Config = resident.config
    if config.model.task == "instruction":
        told["token_accuracy"] = told.pop("score")
        told["perplexity"] = report.perplexity(found.loss)
    if config.generate.rows:
        speaker = Speaker(model, resident.task.tokenizer, config.generate)
        said = answers.answer(speaker, rows, config.run.seed, round)
        told |= {"answers": len(said)}
        told |= likeness([a.answer for a in said], [a.reference for a in said])
    return told


def _rows(resident: Resident, name: str) -> Dataset:
    """The test rows of other data where it has any, else all its rows; labels are the run's."""
    labels = resident.labels or None
    update = {"name": name, "labels": labels, "partition": "iid"}
    source = sources.read(resident.config.data.model_copy(update=update), resident.task.kind)
    return source.rows if source.test is None else source.test
