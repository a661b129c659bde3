"""The global model on the server's rows, beside the next round: score, loss and answers."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

import torch

from fedlora import answers, cancel, files, guard
from fedlora.answers import Answer
from fedlora.config import Config
from fedlora.evaluation import evaluate
from fedlora.generation import Speaker
from fedlora.likeness import NAMES, likeness
from fedlora.resident import Resident
from fedlora.runs import Row, RunDir, before
from fedlora.strategy import Client, Round
from fedlora.tasks import Score
from fedlora.tensors import Tensors


class Wanted(NamedTuple):
    """What is asked of a round's model."""

    score: bool
    answers: bool


class Rated(NamedTuple):
    """What came of it: no score and no answers where none are wanted."""

    score: Score | None = None
    answers: list[Answer] = []


def unanswered(config: Config, number: int) -> Row:
    """What the row of a round says of answers that nobody gave, where some were asked for."""
    asked = config.generate.rows > 0 and number in (0, config.run.rounds)
    return dict.fromkeys(NAMES) if asked else {}


Rate = Callable[[int, Wanted], Rated]  # of the model after a round, which is loaded and committed


def wanted(config: Config, number: int, local: bool, rows: int) -> Wanted:
    """What is asked of the model after a round.

    Args:
        local: whether parts stay with clients: then there is no such model once these differ.
        rows: that the server has to score on.
    """
    if local and number:
        return Wanted(False, False)
    first_or_last = number in (0, config.run.rounds)
    scored = rows > 0 and (number > 0 or config.run.baseline)
    return Wanted(scored, config.generate.rows > 0 and first_or_last)


class Scoring:
    """Scores of the server's model, each made while the next round goes on."""

    def __init__(self, run: RunDir, rate: Rate) -> None:
        self._run, self._rate = run, rate
        self._ended = Event()
        threads = (torch.get_num_threads(),)  # which torch counts thread by thread
        self._aside = ThreadPoolExecutor(1, "score", torch.set_num_threads, threads)
        self._begun: tuple[Future[Rated], int, list[Row]] | None = None

    def close(self) -> None:
        """What is still being scored is wanted by nobody any more."""
        self._ended.set()
        self._aside.shutdown()

    def begin(self, number: int, wants: Wanted, rows: list[Row]) -> None:
        """Score the model after a round, which is committed with these rows; the one before is
        `settled`."""
        assert self._begun is None
        under_way = self._aside.submit(self._rated, number, wants)
        self._begun = under_way, number, rows

    def settled(self, wait: bool = True) -> list[Row]:
        """The rows of the round that was begun, whole and in the run directory from then on; none
        where there is no such round, or without `wait` where it is not done."""
        if self._begun is None or not (wait or self._begun[0].done()):
            return []
        (under_way, number, rows), self._begun = self._begun, None
        rows = [{**rows[0], **self._told(under_way.result(), number)}, *rows[1:]]
        self._run.complete(number, rows)
        return rows

    def _told(self, rated: Rated, number: int) -> Row:
        """What the round's row says of it. Answers are in answers.jsonl from then on, in place of
        those of a round that is done again."""
        row: Row = {}
        if rated.score:
            both = {"score": rated.score.score, "test_loss": rated.score.loss}
            row |= {name: value for name, value in both.items() if math.isfinite(value)}
        if said := rated.answers:
            known = "".join(before(self._run.answers, number))
            files.write(self._run.answers, known + answers.write(said))
            row |= likeness([a.answer for a in said], [a.reference for a in said])
        return row

    def _rated(self, number: int, wants: Wanted) -> Rated:
        with cancel.when(self._ended.is_set):
            return self._rate(number, wants)


def here(resident: Resident) -> Rate:
    """By this process's own model."""
    most = resident.most  # counted now: what it draws, beside a round, would be drawn from there

    def rate(number: int, wants: Wanted) -> Rated:
        model, rows = resident.adapter.model, resident.encoded("", "test")
        score = evaluate(resident.task, model, rows, most) if wants.score else None
        return Rated(score, answered(resident, number) if wants.answers else [])

    return rate


def answered(resident: Resident, number: int) -> list[Answer]:
    """What the loaded model answers to the server's rows."""
    rows, seed = resident.federation.test, resident.config.run.seed
    return answers.answer(_speaker(resident), rows, seed, number)


def check(resident: Resident) -> None:
    """Raises UserError where answers are asked for and no row can be answered."""
    if resident.config.generate.rows:
        rows, seed = resident.federation.test, resident.config.run.seed
        answers.chosen(_speaker(resident), rows, seed)


def _speaker(resident: Resident) -> Speaker:
    return Speaker(resident.adapter.model, resident.task.tokenizer, resident.config.generate)


def load_global(resident: Resident, state: Tensors, number: int) -> None:
    """The global model after a round, into the resident adapter: what a client of full rank would
    be sent to evaluate."""
    scaling, run = resident.adapter.scaling, resident.config.run
    client = Client("server", scaling.rank, scaling.at(scaling.rank))
    round = Round(number, "evaluate", run.seed, run.wire_dtype)
    resident.load(guard.view(resident.strategy, state, client, round), client.scale)
