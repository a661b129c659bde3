"""A server that has a node run its template, tokenizer or model over rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients import app
from clients.owner import Owner, Refused
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.models import packaged
from tests.fedlora.tasks import talk
from tests.hostile.asked import ASK, COMMIT, PIN, SPY, Settings, asked, run

PRIVATE: Settings = {"privacy.epsilon": 1.0, "data.labels": '["bad", "good"]'}


# Templates


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("template", [SPY, ASK])
def test_no_template_of_a_run_sees_a_row(
    talks: Callable[..., Settings], tmp_path: Path, private: bool, template: str
) -> None:
    """Promise: a node renders its owner's template or its model's, and never the run's. What a run
    asks for is named by its digest, and nothing of a row is in the answer."""
    given: Settings = {"model__chat_template": template}
    if not private:
        given["privacy__epsilon"] = None
    answers = []
    for question in (f"my pin is {PIN}", "my pin is 1111"):
        own = talks(question)
        found = asked(own, run(tmp_path, own, **given))
        assert found.facts["status"] == "error" and "SHA-256" in found.facts["reason"]
        answers.append(found.facts)
    assert answers[0] == answers[1] and PIN not in str(answers)


def test_an_owner_s_template_is_used_whatever_the_run_has(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """The same text is allowed, another is not, and none is the owner's."""
    own = talks() | {"chat-template": str(tmp_path / "own.jinja")}
    mine = talk.TEMPLATE.replace("|> {{", "|>  {{")
    (tmp_path / "own.jinja").write_text(mine)
    owner = Owner.read(own)
    for asks in (None, mine):
        flat = run(tmp_path, own, model__chat_template=asks)
        owner.allow(flat, 0)
        assert owner.applied(owner.resolve(flat)[0]).model.chat_template == mine
    with pytest.raises(Refused, match="chat-template"):
        owner.allow(run(tmp_path, own, model__chat_template=ASK), 0)


def test_a_template_that_the_owner_has_not_is_never_rendered(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """Nor by whoever passes the owner's refusal over."""
    own = talks()
    context = Context(1, 1, own, RecordDict(), run(tmp_path, own, model__chat_template=SPY))
    assert app.resident(context).task.tokenizer.chat_template == talk.TEMPLATE


# Models and tokenizers


@pytest.mark.parametrize(
    ("mine", "asks", "fine"),
    [
        ({}, {"model.name": "evil/model"}, False),
        ({}, {"model.name": "evil/model", "model.revision": COMMIT}, False),
        ({"model": "org/model"}, {}, False),
        ({"model": "org/model", "revision": COMMIT}, {}, True),
        ({"model": "/models/own"}, {}, True),
        ({}, {}, True),  # the default, which a package holds
        ({}, {"model.revision": COMMIT}, False),  # of the hub, and no package's
        ({}, {"model.gguf": "evil.gguf"}, False),
    ],
    ids=str,
)
def test_under_a_budget_model_and_tokenizer_are_the_owner_s(
    mine: Settings, asks: Settings, fine: bool
) -> None:
    """Promise: with epsilon a run names no files that read rows."""
    assert packaged(Config().model.name) is not None
    owner = Owner.read({"client": "me", "data": "rows.csv", "epsilon": 3, **mine})
    if fine:
        owner.allow({**PRIVATE, **asks}, 0)
        own = owner.applied(owner.resolve({**PRIVATE, **asks})[0]).model
        assert (own.name, own.revision) == (
            mine.get("model", Config().model.name),
            mine.get("revision"),
        )
    else:
        with pytest.raises(Refused, match="under a budget a model of its own"):
            owner.allow({**PRIVATE, **asks}, 0)


def test_a_model_that_no_package_here_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone is no model that the owner installed."""
    monkeypatch.setattr("fedlora.models.PACKAGED", {Config().model.name: ("no_such_package", "")})
    owner = Owner.read({"client": "me", "data": "rows.csv", "epsilon": 3})
    with pytest.raises(Refused, match="an installed package holds"):
        owner.allow(PRIVATE, 0)


def test_a_commit_is_a_whole_one() -> None:
    """A branch, a tag or half a hash can become another model."""
    for wrong in ("main", "v1", COMMIT[:39], COMMIT.upper()):
        with pytest.raises(UserError, match="revision"):
            Owner.read({"model": "org/model", "revision": wrong})
    with pytest.raises(UserError, match="revision needs model"):
        Owner.read({"revision": COMMIT})
