"""Spending is written down before it is used, and never taken back."""

import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import UserError
from fedlora.privacy.accounting import Mechanism, epsilon
from fedlora.privacy.ledger import Ledger

PLAN = Mechanism(1.5, 0.1, 1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "client" / "deep" / "privacy.json"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path)
    ledger.plan(PLAN)
    return ledger


def test_a_new_ledger_is_empty_and_writes_nothing(path):
    """Looking does not make a file; the first change makes its folders."""
    ledger = Ledger(path)
    assert (ledger.history, ledger.mechanism) == ([], None)
    ledger.adopt([])
    with pytest.raises(ValueError, match="no plan"):
        ledger.spend(1)
    assert not path.parent.parent.exists()
    ledger.plan(PLAN)
    assert path.is_file()


def test_the_first_plan_stays(ledger, path):
    """A resumed run with more rounds keeps its σ."""
    other = Mechanism(9.0, 0.2, 1e-3)
    assert ledger.plan(other) == PLAN == ledger.mechanism == Ledger(path).plan(other)


def test_spending_adds_up(ledger, path):
    """Equal entries are one; what comes next can be asked for without spending it."""
    ledger.spend(30)
    assert ledger.after(5) == [(1.5, 0.1, 35)]
    ledger.spend(30)
    assert ledger.history == Ledger(path).history == [(1.5, 0.1, 60)]
    ledger.spend(0)
    assert ledger.history == [(1.5, 0.1, 60)]
    with pytest.raises(ValueError, match="-1 steps"):
        ledger.spend(-1)


def test_only_the_owner_may_read(ledger, path):
    """Also where a leftover that others may read is in the way."""
    aside = path.with_name(".privacy.json.new")
    aside.touch(0o666)
    aside.chmod(0o666)
    ledger.spend(1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_on_disk_before_it_is_answered_for(ledger, path, monkeypatch):
    """The file is forced to disk, renamed, and the rename forced, in that order."""
    done = []
    fsync, rename = os.fsync, os.replace

    def synced(handle):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append("folder" if folder else f"{os.fstat(handle).st_size > 0}")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b)))
    ledger.spend(1)
    assert done == ["True", "rename", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_leaves_the_old_record(ledger, path, monkeypatch, call):
    """Cut off while writing or before the rename: nothing was answered, nothing is half written,
    and the next spend works."""
    ledger.spend(30)

    def crash(*args):
        raise OSError("power")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(OSError, match="power"):
            ledger.spend(30)
    assert [p.name for p in path.parent.iterdir()] == ["privacy.json"]
    assert Ledger(path).history == [(1.5, 0.1, 30)]
    path.with_name(".privacy.json.new").write_text("{", "utf-8")  # of a process that was killed
    ledger.spend(30)
    assert Ledger(path).history == [(1.5, 0.1, 60)]


def test_every_cut_or_wrong_file_is_refused(ledger, path):
    """No beginning of a file, and no file with a field gone or out of range, counts as nothing
    spent: the message names the file, and it is left as it is."""
    ledger.spend(30)
    whole = path.read_bytes()
    data = json.loads(whole)
    wrong = [whole[:n] for n in range(len(whole))] + [b"[]", b"{}", b"null", b"\xff\xfe"]
    wrong += [json.dumps({k: v for k, v in data.items() if k != gone}).encode() for gone in data]
    for change in (
        {"history": [[1.5, 0.1, -3]]},
        {"history": [[1.5, 0.1]]},
        {"history": [[float("nan"), 0.1, 3]]},
        {"history": [[1.5, 2.0, 3]]},
        {"history": None},
        {"mechanism": {"noise_multiplier": 1.0}},
        {"mechanism": [1.5]},
    ):
        wrong.append(json.dumps({**data, **change}).encode())
    for text in wrong:
        path.write_bytes(text)
        for use in (
            lambda: ledger.history,
            lambda: ledger.spend(30),
            lambda: ledger.plan(PLAN),
            lambda: ledger.adopt([(1.0, 0.1, 3)]),
        ):
            with pytest.raises(UserError, match=r"privacy\.json.*cannot be read.*copy"):
                use()
        assert path.read_bytes() == text
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        _ = ledger.history


def test_what_somebody_else_knows(ledger, path):
    """A lost disk learns what was spent; less than is known changes nothing."""
    ledger.adopt([(1.5, 0.1, 40)])
    assert ledger.history == [(1.5, 0.1, 40)]
    ledger.spend(10)
    text = path.read_text("utf-8")
    ledger.adopt([(1.5, 0.1, 20), (1.5, 0.1, 30)])
    assert path.read_text("utf-8") == text
    ledger.adopt([(1.5, 0.1, 60), (2.0, 0.1, 7)])
    assert ledger.history == [(1.5, 0.1, 60), (2.0, 0.1, 7)]


@pytest.mark.parametrize("said", [(-1.0, 0.1, 3), (1.0, 2.0, 3), (float("nan"), 0.1, 3)])
def test_what_is_no_account_is_not_written(ledger, path, said):
    """It would pass for damage the next time, and stop every run."""
    ledger.adopt([(1.5, 0.1, 40)])
    text = path.read_text("utf-8")
    with pytest.raises(UserError, match="what was said to be spent"):
        ledger.adopt([said])
    assert path.read_text("utf-8") == text


entries = st.lists(
    st.tuples(st.sampled_from([1.0, 2.0]), st.sampled_from([0.1, 0.2]), st.integers(0, 50)),
    max_size=4,
)


@given(own=entries, said=entries)
@settings(max_examples=25)
def test_adopting_never_lowers(tmp_path_factory, own, said):
    """Whatever a server says, also that much was spent at little cost, ε is at least what it was
    and at least what is said."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "privacy.json")
    ledger.adopt(own)
    ledger.adopt(said)
    found = epsilon(ledger.history, 1e-5)
    assert found >= max(epsilon(own, 1e-5), epsilon(said, 1e-5))
