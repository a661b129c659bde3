"""What a run began with is what it goes on with: rows, split, base, settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import RunDir
from server import origin
from server.delivery import manifest
from simulations import results, scoring
from simulations.pool import Pool
from simulations.run import simulate
from tests.federation import World

Rows = list[dict[str, str]]


class Notes(Observer):
    """Watches a run, for the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, log: Path) -> "Notes":
        return self

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *_: object) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def own(world: World, tmp_path: Path) -> World:
    """The world's model and rows in a folder that the test may change."""
    shutil.copytree(world.model, tmp_path / "model")
    shutil.copy(world.data, tmp_path / "rows.jsonl")
    return World(tmp_path / "model", tmp_path / "rows.jsonl")


def run(own: World, previous: RunDir | None = None, **given: Any) -> tuple[RunDir, list[str]]:
    """As `fedlora run`, or `--resume` for a second round: the directory, and what was noted."""
    small = {"run.rounds": 2 if previous else 1, "train.steps": 1, "data.test": 0.2}
    tree = own.tree(own.data.parent / "runs", {"strategy.name": "ffa", **small, **given})
    if previous:
        saved = settings.read(previous.path / "config.toml", [])
        tree = settings.merged(saved, {"run": {"rounds": 2}})
    watch = Notes()
    done = simulate(*settings.resolve(tree, strategies.load), Pool(0, 1), watch, previous)
    return done, watch.notes


def changed(change: Callable[[Rows], object]) -> Callable[[World], None]:
    def write(own: World) -> None:
        rows = [json.loads(line) for line in own.data.read_text().splitlines()]
        change(rows)
        own.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def relabelled(rows: Rows) -> None:
    rows[3]["label"] = "bad" if rows[3]["label"] == "good" else "good"


def weights(own: World) -> None:
    path = own.model / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.0.attention.self.query.weight"][0, 0] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def tokenizer(own: World) -> None:
    path = own.model / "tokenizer.json"
    path.write_text(path.read_text().replace('"filler1"', '"filler99"'))


CHANGES = {
    "appended": (changed(lambda rows: rows.append(rows[0])), "rows are others, 191 in place of"),
    "reversed": (changed(lambda rows: rows.reverse()), "rows are others"),
    "removed": (changed(lambda rows: rows.pop()), "rows are others, 189"),
    "reworded": (changed(lambda rows: rows[5].update(text="other words")), "rows are others"),
    "relabelled": (changed(relabelled), "rows are others"),
    "renamed": (changed(lambda rows: [r.update(label=r["label"] * 2) for r in rows]), "label"),
    "owner": (changed(lambda rows: rows[0].update(domain="films")), "which client has which rows"),
    "weights": (weights, "weights of the base"),
    "tokenizer": (tokenizer, "tokenizer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, RunDir]:
    """A run of one round, in a folder of its own."""
    root = tmp_path_factory.mktemp("begun")
    shutil.copytree(world.model, root / "model")
    shutil.copy(world.data, root / "rows.jsonl")
    own = World(root / "model", root / "rows.jsonl")
    return own, run(own)[0]


@pytest.fixture
def again(begun: tuple[World, RunDir]) -> Any:
    """The same, put back as it was when the test is over."""
    own, there = begun
    kept = own.data.parent.with_name("kept")
    shutil.copytree(own.data.parent, kept)
    yield own, there
    shutil.rmtree(own.data.parent)
    kept.rename(own.data.parent)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_goes_on_with_nothing_else(again: tuple[World, RunDir], name: str) -> None:
    """Refused, with what differs and the way out, before anything is written."""
    own, there = again
    change, words = CHANGES[name]
    change(own)
    before = everything(there.path)
    with pytest.raises(UserError, match=rf"{words}.*Put back .*, or start a new run"):
        run(own, there)
    assert everything(there.path) == before


@pytest.mark.parametrize("name", ["weights", "tokenizer"])
def test_nothing_is_learnt_into_another_base(again: tuple[World, RunDir], name: str) -> None:
    """Export, chat and evaluate, also on other rows."""
    own, there = again
    CHANGES[name][0](own)
    for attempt in (
        lambda: results.made(there),
        lambda: scoring.evaluate(str(there.path), {}, str(own.data), None),
    ):
        with pytest.raises(UserError, match=CHANGES[name][1]):
            attempt()


def test_other_test_rows_are_scored_on_purpose_only(again: tuple[World, RunDir]) -> None:
    """Refused as the run's; a file that is named, or a setting that names them, is scored."""
    own, there = again
    path = str(there.path)
    changed(lambda rows: [row.update(text=row["text"] + " filler1") for row in rows])(own)
    for given in ({}, {"data": {"max_length": 8}}):
        with pytest.raises(UserError, match=r"test rows are others.*--data"):
            scoring.evaluate(path, given, None, None)
    assert scoring.evaluate(path, {}, str(own.data), None)["rows"] == 190
    assert scoring.evaluate(path, {"data": {"name": str(own.data)}}, None, None)["rows"] == 38


def test_labels_stay_in_the_models_order(again: tuple[World, RunDir]) -> None:
    """Rows that have one of them alone, which would be the first, are scored by the model's."""
    own, there = again
    rows = [json.loads(line) for line in own.data.read_text().splitlines()]
    good = [row for row in rows if row["label"] == "good"]
    other = own.data.with_name("good.jsonl")
    other.write_text("".join(json.dumps(row) + "\n" for row in good))
    by_file = scoring.evaluate(str(there.path), {}, str(other), None)
    given = {"data": {"name": str(other), "test": 0.9}}
    by_name = scoring.evaluate(str(there.path), given, None, None)
    assert by_name["score"] == pytest.approx(by_file["score"], abs=0.1)


def test_a_model_leaves_without_the_rows(again: tuple[World, RunDir]) -> None:
    """As on another machine: labels are in the run. Its own rows are then not there to score."""
    own, there = again
    elsewhere = own.data.rename(own.data.with_name("elsewhere.jsonl"))
    resident, round = results.loaded(there, None)
    assert (resident.labels, round) == (["bad", "good"], 1)
    assert scoring.evaluate(str(there.path), {}, str(elsewhere), None)["rows"] == 190
    with pytest.raises(UserError, match=r"no file or folder .*rows\.jsonl"):
        scoring.evaluate(str(there.path), {}, None, None)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("lr = 0.01", "lr = 0.02", r"train\.lr = 0\.02 in place of 0\.01"),
        ("seed = 0", "seed = 1", r"run\.seed = 1 in place of 0"),
        ("test = 0.2", "test = 0.3", r"data\.test"),
        ("rank = 4", "rank = 2", r"adapter\.rank"),
    ],
)
def test_a_configuration_that_was_edited_is_refused(
    again: tuple[World, RunDir], before: str, after: str, words: str
) -> None:
    """To go on, and to export, whose card would say what is not true."""
    own, there = again
    path = there.path / "config.toml"
    path.write_text(path.read_text().replace(before, after))
    for attempt in (lambda: run(own, there), lambda: results.made(there)):
        with pytest.raises(UserError, match=words):
            attempt()


def test_what_is_the_same_elsewhere_goes_on(again: tuple[World, RunDir]) -> None:
    """Model and rows may have moved, workers and trackers be others."""
    own, there = again
    moved = own.data.rename(own.data.with_name("moved.jsonl"))
    model = own.model.rename(own.model.with_name("moved"))
    path = there.path / "config.toml"
    text = path.read_text().replace(str(own.data), str(moved)).replace(str(own.model), str(model))
    path.write_text(text.replace('["tensorboard"]', "[]").replace("threads = 1", "threads = 2"))
    assert run(own, there)[0].rounds() == [0, 1, 2][-2:]


def test_another_version_is_said(again: tuple[World, RunDir]) -> None:
    own, there = again
    path = there.path / "origin.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "0.0.1"}))
    assert any("began with fedlora 0.0.1" in note for note in run(own, there)[1])


def test_a_run_that_did_not_note_it_goes_on_and_says_so(again: tuple[World, RunDir]) -> None:
    """One of an earlier version; nothing is noted now, as if it had been there from the start."""
    own, there = again
    for name in ("origin.json", "split.json"):
        (there.path / name).unlink()
    assert any("is not known" in note for note in run(own, there)[1])
    assert not (there.path / "origin.json").exists()


def test_digests_of_rows_have_a_key_and_stay(begun: tuple[World, RunDir]) -> None:
    """For their owner alone; not delivered; two runs of the same rows have nothing in common."""
    _, there = begun
    assert (there.path / "split.json").stat().st_mode & 0o077 == 0
    sent = manifest(there.path)
    assert "origin.json" in sent.files and "split.json" not in {*sent.files, *sent.left}
    folder = there.path.parent / "other"
    folder.mkdir()
    tree = settings.read(there.path / "config.toml", [])
    origin.begin(folder, Resident(*settings.resolve(tree, strategies.load)))
    one, other = (json.loads((p / "split.json").read_text()) for p in (there.path, folder))
    assert one["counts"] == other["counts"]
    assert not {*one["digests"].values()} & {*other["digests"].values()}


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"key": "00", "digests": 3}'])
@pytest.mark.parametrize("name", ["origin.json", "split.json"])
def test_a_damaged_file_is_said(again: tuple[World, RunDir], name: str, text: str) -> None:
    own, there = again
    (there.path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        run(own, there)
