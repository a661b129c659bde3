"""Where a run's time goes: seconds by span, of every process and round. Off unless it is asked for.

A process is in one span at a time. One inside another takes its time from it, and what is in none
is `other`, so that the spans of a process add up to its wall time. They are those of the thread
that records: what others do beside it is time that it waits.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Literal, ParamSpec, TypeVar, get_args

from rich import box
from rich.table import Table

from fedlora import files

Span = Literal[
    "load",  # imports, the model, adapters into it
    "tokenise",
    "forward and backward",  # of training, with making its batches
    "optimizer",
    "encode",  # orders and replies: what a client lacks, digests, to and from bytes
    "store",  # what stays on a client, to and from its disk
    "aggregate",  # screening included
    "evaluate",
    "checkpoint",
    "wait",  # for other processes
    "other",
]
Seconds = dict[str, float]
SERVER = "server"
AFTER = "end"  # the time after the last round, among the rounds
MANY = 4  # workers with a column each; of more, their mean has one

P = ParamSpec("P")
R = TypeVar("R")


class Recorder:
    """Seconds by span of the process that makes it, from now on."""

    def __init__(self) -> None:
        self._since = perf_counter()
        self._open: list[Span] = ["other"]
        self._seconds: Seconds = {}

    @contextmanager
    def span(self, name: Span) -> Iterator[None]:
        """Inside, time goes to this span."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def taken(self) -> Seconds:
        """By span, since the last time that it was asked."""
        self._turn()
        found, self._seconds = self._seconds, {}
        return found

    def _turn(self) -> None:
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else a GPU's work would count for whoever waits for it next
        now, name = perf_counter(), self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


class Profile(Recorder):
    """A whole run: this process's spans, and those that worker processes hand in.

    Attributes:
        rounds: process -> round -> span -> seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = self._since
        self.rounds: dict[str, dict[str, Seconds]] = {SERVER: {}}

    def add(self, process: str, round: str, seconds: Seconds) -> None:
        """Seconds of a process, to those that it has in this round."""
        held = self.rounds.setdefault(process, {}).setdefault(round, {})
        for name, value in seconds.items():
            held[name] = held.get(name, 0.0) + value

    def end(self) -> None:
        """Nothing follows: what is left of this process, and workers have waited since they handed
        in their last spans or, where they never did, from the start."""
        self.add(SERVER, AFTER, self.taken())
        wall = self._since - self.begun
        for process in set(self.rounds) - {SERVER}:
            rest = wall - sum(self.totals(process).values())
            self.add(process, AFTER, {"wait": max(0.0, rest)})

    def totals(self, process: str) -> Seconds:
        """By span, over all rounds."""
        total: Seconds = {}
        for seconds in self.rounds[process].values():
            for name, value in seconds.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def write(self, path: Path) -> None:
        """As JSON: {"seconds": of the run, "processes": {process: {round: {span: seconds}}}}."""
        told = {"seconds": self._since - self.begun, "processes": self.rounds}
        files.write(path, json.dumps(told, indent=1) + "\n")


_current: ContextVar[Recorder | None] = ContextVar("profile", default=None)
_NOTHING = nullcontext()


def current() -> Recorder | None:
    """The recorder of this thread, if there is one."""
    return _current.get()


def span(name: Span) -> AbstractContextManager[None]:
    """Inside, time goes to this span; without a recorder nothing happens. Not around a `yield`."""
    recorder = _current.get()
    return recorder.span(name) if recorder else _NOTHING


def timed(name: Span) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function's time goes to this span. Not for generators."""

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorated


def mark(round: int) -> None:
    """What this process did since the last mark was for this round."""
    if isinstance(profile := _current.get(), Profile):
        profile.add(SERVER, str(round), profile.taken())


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Inside, this thread's spans go to the recorder, if there is one."""
    token = _current.set(recorder)
    try:
        yield
    finally:
        _current.reset(token)


def table(profile: Profile) -> Table:
    """Seconds, and their share of the run's, by span and process."""
    workers = sorted(set(profile.rounds) - {SERVER})
    shown = {name: profile.totals(name) for name in [SERVER, *workers]}
    if len(workers) > MANY:
        shown = {SERVER: shown[SERVER], f"{len(workers)} workers, mean": _mean(shown, workers)}
    names = [s for s in get_args(Span) if any(s in seconds for seconds in shown.values())]
    made = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for process in shown:
        made.add_column(process, justify="right", no_wrap=True)
    for name in names:
        made.add_row(name, *(_cell(s.get(name, 0.0), sum(s.values())) for s in shown.values()))
    made.add_section()
    made.add_row("seconds", *(_cell(sum(s.values()), sum(s.values())) for s in shown.values()))
    return made


def _mean(shown: Mapping[str, Seconds], workers: list[str]) -> Seconds:
    names = {name for w in workers for name in shown[w]}
    return {n: sum(shown[w].get(n, 0.0) for w in workers) / len(workers) for n in names}


def _cell(seconds: float, whole: float) -> str:
    return f"{seconds:.2f} {seconds / whole:4.0%}" if whole else "–"
