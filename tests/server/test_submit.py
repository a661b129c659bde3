"""Submitting a run, with a `flwr` that answers from files: what is started, heard and judged."""

import json
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

import strategies
from fedlora import settings
from fedlora.config import Config
from fedlora.errors import Stopped, UserError
from fedlora.progress import Observer, Progress
from fedlora.runs import RunDir
from server import bundle, flower
from server import submit as submitting
from server.events import OPENING, PREFIX
from server.flower import Connection
from server.submit import Failed, submit

FAKE = """#!/bin/sh
# Each command's answers are files in turn, the last one for ever; what it was asked is recorded.
cd "{folder}"
echo "$@" >> asked
[ "$1" = run ] && cp "$2/pyproject.toml" bundle.toml
turn=$(grep -c "^$1" asked)
while [ ! -f "$1-$turn" ] && [ "$turn" -gt 1 ]; do turn=$((turn - 1)); done
cat "$1-$turn"
"""
COMPLETED = ("finished:completed", "N/A")


class Flwr:
    """What the fake answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.say("run", {"success": True, "run-id": "7"})
        self.say("stop", {"success": True})

    def say(self, command: str, *answers: object) -> None:
        for turn, answer in enumerate(answers, 1):
            text = answer if isinstance(answer, str) else json.dumps(answer)
            (self.folder / f"{command}-{turn}").write_text(text)

    def status(self, *found: tuple[str, str]) -> None:
        runs = [{"status": s, "status-details": d} for s, d in found]
        self.say("list", *({"success": True, "runs": [run]} for run in runs))

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


def told(*events: dict[str, object]) -> str:
    numbered = [json.dumps({"n": n, **e}) for n, e in enumerate(events, 1)]
    lines = (f"{PREFIX} {TOKEN} {line}\n" for line in numbered)
    return f"{OPENING} {TOKEN}\n{''.join(lines)}"


TOKEN = "0123456789abcdef" * 2
NOTE = {"kind": "note", "text": "a note"}
FILES = {"kind": "files", "files": {}, "left": []}
END = {"kind": "end"}
LOST = {"size": 3, "sha256": "0" * 64}


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flwr:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "near"\n[superlink.near]\naddress = "127.0.0.1:1"\n'
        '[superlink.local]\naddress = ":local:"\n'
    )
    monkeypatch.setenv("FLWR_HOME", str(home))
    script = tmp_path / "flwr"
    script.write_text(FAKE.format(folder=home))
    script.chmod(0o755)
    monkeypatch.setattr(flower, "_flwr", lambda: str(script))
    monkeypatch.setattr(submitting, "PAUSE", 0.01)
    return Flwr(home)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tree = {"run": {"dir": str(tmp_path / "runs"), "name": "one"}}
    return settings.resolve(tree, strategies.load)[0]


def test_the_bundle_is_the_configuration_and_no_code(config: Config, tmp_path: Path) -> None:
    """One file: the components, and a run-config that resolves to the same configuration."""
    bundle.write(config, tmp_path, "one", True)
    assert [p.name for p in tmp_path.iterdir()] == ["pyproject.toml"]
    made = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))
    tables = made["tool"]["flwr"]["app"]["config"]
    assert tables.pop("submit") == {"run": "one", "resume": True}
    flat = {f"{s}.{k}": v for s, table in tables.items() for k, v in table.items()}
    assert flat == settings.to_flat(config)
    assert all(isinstance(v, bool | int | float | str) for v in flat.values())


def test_a_run_is_seen_through_a_broken_line(
    flwr: Flwr, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log that breaks off, in mid-line even, is read again until the run has ended and every
    event was heard; each is shown once."""
    whole = told(NOTE, {**NOTE, "text": "later"}, FILES, END)
    flwr.say("log", "something else\n" + whole[:170], whole[:240], whole)
    flwr.status(("running", ""), ("running", ""), COMPLETED)
    with Progress(5, Console(), None) as observer:
        run = submit(config, "near", observer)
    assert capsys.readouterr().out.splitlines() == ["a note", "later"]
    assert run.path == tmp_path / "runs/one"
    assert [x for x in flwr.asked if x.startswith("log")] == ["log 7 near --stream"] * 3


def test_the_configuration_is_the_submitters(flwr: Flwr, config: Config) -> None:
    """What was asked for is written here, with the rounds that were added later, and not by the
    server, whose list may not name it."""
    forged = {**FILES, "files": {"config.toml": LOST}}
    flwr.say("log", told(FILES, END), told(forged, END))
    flwr.status(COMPLETED)
    run = submit(config, "near", Observer())
    more = config.model_copy(update={"run": config.run.model_copy(update={"rounds": 7})})
    with pytest.raises(Failed, match="the list of its files"):
        submit(more, "near", Observer(), run)
    written = settings.read(run.path / "config.toml", [])["run"]
    assert (written["rounds"], written["name"]) == (7, "one")


def test_a_failed_run_says_why(flwr: Flwr, config: Config) -> None:
    """The ServerApp's own words; of a run that never began nothing is left here either."""
    flwr.say("log", "Traceback\n" + told({"kind": "error", "text": "no rows"}, END))
    flwr.status(("finished:failed", "ServerApp failed"))
    with pytest.raises(Failed, match=r"the run failed: no rows$"):
        submit(config, "near", Observer())
    assert not Path(config.run.dir, "one").exists()


def test_a_serverapp_that_died_leaves_its_last_lines(flwr: Flwr, config: Config) -> None:
    """Without an event that says why, the superlink's reason and what was printed; and the run can
    be gone on with."""
    flwr.say("log", told(NOTE) + "\x1b[91mERROR: Killed\x1b[0m\n")
    flwr.status(("finished:failed", "No heartbeat"))
    with pytest.raises(Failed) as failed:
        submit(config, "near", Observer())
    lines = str(failed.value).splitlines()
    assert lines[0] == "the run failed: No heartbeat; the last that it printed:"
    assert lines[1:-1] == ["  ERROR: Killed"]
    assert lines[-1].endswith(f"--to near --resume {config.run.dir}/one")
    RunDir.open("one", config.run.dir)


def test_what_did_not_arrive_is_named(flwr: Flwr, config: Config) -> None:
    """A run that completed but whose files are not here is no success."""
    flwr.say("log", told({**FILES, "files": {"curves.png": LOST}}, END))
    flwr.status(COMPLETED)
    with pytest.raises(Failed, match=r"did not arrive: curves\.png; bring it again with"):
        submit(config, "near", Observer())


def test_a_superlink_that_stays_away_is_given_up(
    flwr: Flwr, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the patience is over, with what is wrong with the connection."""
    monkeypatch.setattr(submitting, "PATIENCE", 0.2)
    flwr.say("log", "")
    flwr.say("list", {"success": False, "error-message": "unavailable"})
    with pytest.raises(Failed, match=r"run 7 is lost from sight: .*127\.0\.0\.1:1 cannot be reach"):
        submit(config, "near", Observer())


def test_a_superlink_that_forgot_the_run_is_given_up_at_once(flwr: Flwr, config: Config) -> None:
    """Started anew without its database, it will never know the run again; while one that gives no
    sense for a moment is asked again."""
    flwr.say("log", "")
    unknown = "Using SuperLink: near\n\n[code: 16] Run ID not found."
    flwr.say("list", "Killed", {"success": False, "error-message": unknown})
    with pytest.raises(Failed, match="run 7 is lost from sight"):
        submit(config, "near", Observer())
    assert len([x for x in flwr.asked if x.startswith("list")]) == 2


def test_ctrl_c_stops_the_run(flwr: Flwr, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is stopped at the superlink too, and the message says how to go on."""

    class Interrupted(Observer):
        def note(self, text: str) -> None:
            raise KeyboardInterrupt

    flwr.say("log", told(NOTE))
    with pytest.raises(Stopped, match="stopped; go on with: fedlora submit --to near --resume"):
        submit(config, "near", Interrupted())
    assert flwr.asked[-1] == "stop 7 near --format json"


def test_nothing_is_left_where_nothing_started(flwr: Flwr, config: Config) -> None:
    """A superlink that cannot be reached or says no is a person's mistake."""
    flwr.say("run", {"success": False, "error-message": "unavailable"})
    with pytest.raises(UserError, match=r"no run was started on near: .* cannot be reached"):
        submit(config, "near", Observer())
    assert not Path(config.run.dir, "one").exists()


def test_an_unknown_connection_names_the_known(flwr: Flwr) -> None:
    """And Flower's own local engine is none of them."""
    with pytest.raises(UserError, match=r"called 'nea' .*did you mean 'near'\? \(there are near\)"):
        Connection.named("nea")
    with pytest.raises(UserError, match="no superlink is called 'local'"):
        Connection.named("local")


def test_a_taken_name_is_refused_here(flwr: Flwr, config: Config) -> None:
    """A run directory that exists is not written over."""
    RunDir.create(config)
    with pytest.raises(UserError, match="exists"):
        submit(config, "near", Observer())
    assert not (flwr.folder / "asked").exists()
