"""A run on real nodes: started on a superlink, watched from here, and brought back at its end."""

import shutil
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from rich.text import Text

from fedlora import settings
from fedlora.config import Config
from fedlora.errors import Failed, Stopped, UserError
from fedlora.progress import Observer
from fedlora.runs import RunDir
from fedlora.untrusted import LONG, plain
from server import bundle
from server.delivery import Incoming
from server.events import Event, opening, parse, play
from server.flower import Connection, NoAnswer, Status

SILENCE = 60.0  # seconds without a line until the superlink is asked how the run is
SILENCES = 10  # that many, and the line may be dead: it is opened anew
PAUSE = 2.0  # seconds between attempts
PATIENCE = 600.0  # seconds that a superlink may be away
REREADS = 3  # readings of a finished run's log, in case its last lines were late
LINE = 64 << 20  # characters of a line; the rest of a longer one is no event
TAIL = 25  # lines that are no events, kept for when nothing else says what went wrong


class Listener:
    """Hears a run's log: events go to an observer, once each, and files to their place. What is no
    event of this run by its token, or has other fields than its kind, is text and no more."""

    def __init__(self, observer: Observer, incoming: Incoming) -> None:
        self.observer, self.incoming = observer, incoming
        self.tail: deque[str] = deque(maxlen=TAIL)  # of this reading
        self.error: str | None = None
        self._token: str | None = None  # of the first line that opens a run's events
        self._seen: set[int] = set()
        self._last: int | None = None

    def hear(self, line: str) -> None:
        self._token = self._token or opening(line)
        if event := parse(line, self._token) if self._token else None:
            self._heard(event)
        elif self._token is None or opening(line) != self._token:
            self.tail.append(plain(Text.from_ansi(line.rstrip()).plain, LONG))

    def _heard(self, event: Event) -> None:
        early = event.kind == "file" and not self.incoming.expected  # it comes again with the list
        if early or event.number in self._seen:
            return
        self._seen.add(event.number)
        if event.kind == "error":
            self.error = plain(event.fields["text"], LONG)
        elif event.kind in ("files", "file"):
            take = self.incoming.expect if event.kind == "files" else self.incoming.accept
            try:
                take(**event.fields)
            except (UserError, OSError) as e:  # the run goes on; what is missing is said at its end
                self.observer.note(str(e))
        elif event.kind == "end":
            self._last = event.number
        else:
            play(event, self.observer)

    @property
    def complete(self) -> bool:
        """Every event was heard, to the last."""
        return self._last is not None and len(self._seen) == self._last


def submit(config: Config, to: str, observer: Observer, resume: RunDir | None = None) -> RunDir:
    """Run a configuration on the superlink called `to`, or go on there with a run of this
    directory; returns the local run directory with all that came back.

    Raises UserError where nothing was started, Failed where the run failed, and Stopped.
    """
    connection = Connection.named(to)
    run = resume or RunDir.create(config)
    name, id = run.path.name, None
    again = f"fedlora submit --to {to} --resume {run.path}"
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    listener = Listener(observer, Incoming(run.path))
    try:
        with tempfile.TemporaryDirectory(prefix="fedlora-") as folder:
            bundle.write(config, Path(folder), name, resume is not None)
            id = connection.start(Path(folder))
        settings.write(config, run.path / "config.toml")  # there may be more rounds now
        status = follow(connection, id, listener)
    except KeyboardInterrupt:
        raise Stopped(_stopped(connection, id, again)) from None
    finally:
        listener.incoming.close()
        nothing = id is None or (listener.error and not listener.incoming.expected)
        if nothing and not resume:  # nor is there anything on the server
            shutil.rmtree(run.path)
    if not status.completed:
        raise Failed(_why(listener, status) + ("" if nothing else f"\ngo on with: {again}"))
    _check(listener, again)
    return run


def follow(connection: Connection, run: str, listener: Listener) -> Status:
    """Hear the run to its end, whatever becomes of the line meanwhile. Raises Failed where the
    superlink stays away or has forgotten the run."""
    until = time.monotonic() + PATIENCE
    rereads = 0
    while True:
        _listen(connection, run, listener)
        try:
            status = connection.status(run)
        except NoAnswer as e:
            if e.unknown or time.monotonic() > until:
                why = connection.fault() or str(e)
                raise Failed(f"run {run} is lost from sight: {why}") from None
        else:
            until = time.monotonic() + PATIENCE
            if status.finished and (listener.complete or rereads == REREADS):
                return status
            rereads += status.finished
        time.sleep(PAUSE)


def _listen(connection: Connection, run: str, listener: Listener) -> None:
    """Hear the log, from its start, until its stream ends or seems dead."""
    listener.tail.clear()
    stream = connection.log(run)
    assert stream.stdout is not None
    lines: Queue[str | None] = Queue()

    def read(source: IO[str]) -> None:
        while line := source.readline(LINE):
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, args=(stream.stdout,), daemon=True).start()
    silent = 0
    try:
        while silent < SILENCES:
            try:
                line = lines.get(timeout=SILENCE)
            except Empty:
                silent += 1
                if _over(connection, run):
                    return
                continue
            if line is None:
                return
            silent = 0
            if line.endswith("\n"):  # else it was cut off, and comes again
                listener.hear(line)
    finally:
        stream.kill()
        stream.wait()


def _over(connection: Connection, run: str) -> bool:
    """Whether nothing more is to be heard on this line."""
    try:
        return connection.status(run).finished
    except NoAnswer:
        return True


def _stopped(connection: Connection, run: str | None, again: str) -> str:
    """Stop the run; what to tell whoever asked for it."""
    if run is None:
        return "stopped before the superlink had taken the run"
    try:
        connection.stop(run)
    except NoAnswer as e:
        return (
            f"the run could not be stopped and goes on ({e}): try flwr stop {run} "
            f"{connection.name}, then go on with: {again}"
        )
    return f"stopped; go on with: {again}"


def _why(listener: Listener, status: Status) -> str:
    if listener.error:
        return f"the run failed: {listener.error}"
    if status.text == "finished:stopped":
        return "the run was stopped at the superlink"
    last = "".join(f"\n  {line}" for line in listener.tail)
    why = plain(status.details or status.text, LONG)
    return f"the run failed: {why}; the last that it printed:{last}"


def _check(listener: Listener, again: str) -> None:
    """Everything is here. Raises Failed with what is not."""
    expected = listener.incoming.expected
    missing = listener.incoming.missing()
    if expected is None or missing:
        what = ", ".join(missing) or "the list of its files"
        raise Failed(
            f"the run completed, but of its directory did not arrive: {what}; "
            f"bring it again with: {again}"
        )
    if expected.left:
        listener.observer.note(
            "left on the server, as too much to send or no files of a run: "
            + ", ".join(expected.left)
        )
