"""The global model on the server's rows: its score, its loss, and what it answers."""

import math
from collections.abc import Collection

from fedlora import answers, files, profile
from fedlora.evaluation import evaluate
from fedlora.generation import Speaker
from fedlora.likeness import NAMES, likeness
from fedlora.resident import Resident
from fedlora.runs import Row, RunDir, before
from fedlora.tensors import Tensors
from server.result import load_global


@profile.timed("evaluate")
def scored(
    resident: Resident, run: RunDir, state: Tensors, number: int, local: Collection[str]
) -> Row:
    """What the round's row says of the global model; None is what it does not have. A method that
    keeps parts on clients (`local`) has that model only before those differ."""
    rows = resident.encoded("", "test")
    asked = resident.config.generate.rows > 0 and number in (0, resident.config.run.rounds)
    row: Row = dict.fromkeys(("score", "test_loss", *(NAMES if asked else ())))
    if local and number:
        return row
    if len(rows) or asked:
        load_global(resident, state, number)
        found = evaluate(resident.task, resident.adapter.model, rows)
        both = {"score": found.score, "test_loss": found.loss}
        row |= {name: value for name, value in both.items() if math.isfinite(value)}
    return row | (_answered(resident, run, number) if asked else {})


def _answered(resident: Resident, run: RunDir, number: int) -> Row:
    """How like the loaded model's answers are to what is right; they are in answers.jsonl from then
    on, in place of those of a round that is done again."""
    config, rows = resident.config, resident.federation.test
    speaker = Speaker(resident.adapter.model, resident.task.tokenizer, config.generate)
    found = answers.answer(speaker, rows, config.run.seed, number)
    files.write(run.answers, "".join(before(run.answers, number)) + answers.write(found))
    return dict(likeness([a.answer for a in found], [a.reference for a in found]))
