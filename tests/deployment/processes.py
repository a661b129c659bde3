"""Real processes, and links that can be cut, for the deployment tests."""

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

MARK = "FEDLORA_TEST_ROLE"  # names, in a process's environment, the role that it belongs to
T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], seconds: float) -> T:
    """The condition's first true value. Raises AssertionError, naming `what`, at the deadline."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def marked(role: str, word: str = "") -> list[psutil.Process]:
    """The processes whose role begins so and whose command line has the word in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get(MARK, "").startswith(role)
            if ours and word in " ".join(process.cmdline()):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, as a crash or a lack of memory does it; returns when they are gone."""
    gone = list(processes)
    for process in gone:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(gone, timeout=10)


class Role:
    """One long-lived process with what it starts, its log and how it is started again."""

    def __init__(self, name: str, command: list[str], folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command, self.folder, self.log = command, folder, folder / f"{name}.log"
        self.mark = f"{folder}:{name}"
        self._env = {**os.environ, **env, MARK: self.mark}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        """The exit code; None as long as it runs."""
        assert self._process
        return self._process.poll()

    def finished(self, seconds: float) -> int:
        """The exit code, waited for."""
        assert self._process
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            text = f"{self.command[:3]} does not end within {seconds:g} s:\n{self.tail()}"
            raise AssertionError(text) from None

    def kill(self) -> None:
        """End it with everything that it started, as when its machine or container dies."""
        end(marked(self.mark))
        if self._process:
            self._process.wait(10)

    def kill_one(self, word: str) -> None:
        """End those of its processes whose command line has the word in it."""
        end(wait_for(f"a process {word}", lambda: marked(self.mark, word), 30))

    def said(self, text: str) -> bool:
        return text in self.text()

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def tail(self) -> str:
        return self.text()[-3000:]


class Link:
    """A TCP relay on loopback: what lies between a node and the superlink, to be cut."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._ends: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()

    def join(self) -> None:
        """Let connections through."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    @property
    def open(self) -> bool:
        return self._listener is not None

    def cut(self) -> None:
        """Drop all connections and refuse new ones."""
        with self._lock:
            ends, self._ends = self._ends, set()
            listener, self._listener = self._listener, None
        for one in [*ends, *([listener] if listener else [])]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                if self._listener is not listener:
                    near.close(), far.close()
                    return
                self._ends |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._ends.discard(source)
