"""A server that asks about rows by whether something works over them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients import app
from fedlora.privacy.training import Updates
from fedlora.tasks import usable
from tests.fedlora.tasks import talk
from tests.hostile.asked import ASK, PIN, Settings, asked, ordered, run


@pytest.mark.parametrize("more", [{}, {"epsilon": 3}], ids=["the run's ε", "the owner's ε"])
@pytest.mark.parametrize(
    ("last", "given"),
    [
        ({"label": "ill"}, {"data__labels": ["bad", "good"]}),
        ({"text": "common " * 23}, {"data__labels": ["bad", "good"], "data__max_length": 48}),
    ],
    ids=["a label", "a length"],
)
def test_a_private_run_works_whatever_is_in_a_row(
    texts: Callable[..., Settings],
    tmp_path: Path,
    last: Settings,
    given: Settings,
    more: Settings,
) -> None:
    """Promise: in a private run that works on a node, it works whatever the rows are: one that
    cannot be used counts, with no gradient. Nothing but paid-for tensors and counts differs."""
    said = []
    for change in ({}, last):
        own = texts(**change) | more
        flat = run(tmp_path, own, **given)
        said += [asked(own, flat).facts, ordered(own, flat, len(said)).facts]
    assert said[0] == said[2] and said[0]["status"] == "ok"
    assert said[1]["status"] == said[3]["status"] == "ok"


def test_labels_that_change_within_a_run_are_no_question(
    texts: Callable[..., Settings], tmp_path: Path
) -> None:
    """The rows that a run began with are held against those of its next round, whatever labels the
    run then knows: else it would ask whether there is a row with a new one."""
    said = []
    for change in ({}, {"label": "ill"}):
        own = texts(**change) | {"epsilon": 3}
        for round, known in enumerate((["bad", "good"], ["bad", "good", "ill"]), start=1):
            flat = run(tmp_path, own, data__labels=known)
            said.append(ordered(own, flat, round).facts["status"])
    assert said == ["ok"] * 4


def test_how_a_run_divides_rows_is_no_question(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """A division by label would look for one in every row, of conversations too."""
    own = talks(label="in one row alone")
    flat = run(tmp_path, own, data__partition="dirichlet")
    assert asked(own, flat).facts["status"] == "ok"


def test_a_conversation_that_the_template_refuses_counts_without_a_gradient(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """The owner's own template, or the model's, may not take a row either."""
    own = talks(f"my pin is {PIN}") | {"chat-template": str(tmp_path / "own.jinja")}
    (tmp_path / "own.jinja").write_text(ASK.replace("x", "") + talk.TEMPLATE)
    flat = run(tmp_path, own)
    facts = [asked(own, flat).facts]
    assert ordered(own, flat).facts["status"] == "ok"
    resident = app.resident(Context(1, 1, own, RecordDict(), flat))
    assert list(resident.faults) == [0]
    table = resident.table
    batch = resident.task.batch(table, [0, 1])
    losses = resident.task.losses(resident.adapter.model, batch)
    assert losses[0] == 0 and losses[1] > 0
    right, _ = resident.task.outcomes(resident.adapter.model, batch)
    assert right[0] == 0
    own = talks("my pin is 1111") | {"chat-template": str(tmp_path / "own.jinja")}
    facts.append(asked(own, flat).facts)
    assert facts[0] == facts[1] and facts[0]["status"] == "ok"


@pytest.mark.parametrize("private", [True, False])
def test_that_rows_teach_nothing_is_said_of_no_budget(
    talks: Callable[..., Settings], tmp_path: Path, private: bool
) -> None:
    """All answers are cut off: a node refuses to begin, but where its rows may not decide it."""
    own = talks()
    epsilon = 3.0 if private else None
    found = asked(own, run(tmp_path, own, data__max_length=5, privacy__epsilon=epsilon))
    assert found.facts["status"] == ("ok" if private else "error")


def test_a_token_that_the_model_does_not_know_is_no_question(
    texts: Callable[..., Settings], tmp_path: Path
) -> None:
    """A tokenizer with one word more than the model, and the word in one row."""
    own = texts(text="common extraword")
    flat = run(tmp_path, own)
    context = Context(1, 1, own, RecordDict(), flat)
    resident = app.resident(context)
    words = len(resident.task.tokenizer)
    resident.task.tokenizer.add_tokens(["extraword"])
    assert resident.task.tokenizer("extraword")["input_ids"][1] == words
    assert ordered(own, flat).facts["status"] == "ok"
    (fault,) = resident.faults.values()
    assert "does not know" in fault
    assert int(resident.table.inputs["input_ids"].max()) < words


def test_the_gradient_of_a_blank_row_is_zero(
    texts: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is trained: every row's own gradient, as it is clipped, of a table of blank rows."""
    own = texts()
    flat = run(tmp_path, own)
    resident = app.resident(Context(1, 1, own, RecordDict(), flat))
    seen: list[float] = []
    take = Updates.take

    def looked(self: Updates, last: bool) -> None:
        seen.extend(float(g.abs().max()) for g in self._updater.grad_samples if g.numel())
        take(self, last)

    monkeypatch.setattr(Updates, "take", looked)
    table, _ = usable.encode(resident.task, resident.federation.rows, vocabulary=0)
    resident._tried = (table, {})
    assert ordered(own, flat).facts["status"] == "ok"
    assert seen and not any(seen)


def test_that_a_model_reads_so_long_a_row_is_tried_on_nobody_s(
    texts: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would ask whether there is a row longer than the model has places: it fails
    whatever the rows are, as short as they may be."""
    monkeypatch.setattr("fedlora.pretrained.Pretrained.longest", lambda self, asked, _: asked)
    own = texts()
    found = asked(own, run(tmp_path, own, data__max_length=48))
    assert found.facts["status"] == "error"
    assert asked(own, run(tmp_path, own, data__max_length=24)).facts["status"] == "ok"


@pytest.mark.parametrize("memory", [1e-6, 1e6])
def test_a_run_says_nothing_of_a_node_s_machine(
    texts: Callable[..., Settings], tmp_path: Path, memory: float
) -> None:
    """How large its passes are is not the run's to say: it would ask for the longest row."""
    own = texts()
    flat = run(tmp_path, own, simulation__memory=memory, simulation__copies=3)
    resident = app.resident(Context(1, 1, own, RecordDict(), flat))
    assert resident.most is None and resident.config.simulation.copies is None


def test_a_form_that_the_run_says_is_no_question(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """Nor whether rows are in it."""
    own = talks()
    told = [
        asked(own, run(tmp_path, own, data__format=form)).facts for form in ("auto", "sharegpt")
    ]
    assert told[0] == told[1] and told[0]["status"] == "ok"
