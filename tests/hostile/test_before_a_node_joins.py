"""What a run could find out of rows that cannot be used is found before the node joins."""

import contextlib
import io
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clients import node, ready
from clients.node import Superlink
from clients.owner import Owner
from fedlora.errors import UserError
from tests.fedlora.tasks import talk
from tests.hostile.asked import ASK, PIN, Settings


@pytest.mark.parametrize(
    ("last", "says"),
    [({"text": ""}, "row 90 has no value"), ({"label": ""}, "row 90 has no value"), ({}, "")],
    ids=["no text", "no label", "whole"],
)
def test_rows_are_looked_at_before_a_node_with_a_budget_joins(
    texts: Callable[..., Settings], last: Settings, says: str
) -> None:
    """Promise: under epsilon a node starts with rows that can be used alone."""
    owner = Owner.read(texts(**last) | {"epsilon": 3})
    if not says:
        ready.verify(owner)
        return
    with pytest.raises(UserError, match=says):
        ready.verify(owner)


def test_a_template_is_tried_on_all_rows_before_a_node_with_a_budget_joins(
    talks: Callable[..., Settings], tmp_path: Path
) -> None:
    """Its owner is told which row it does not take."""
    own = talks(f"my pin is {PIN}") | {"chat-template": str(tmp_path / "own.jinja"), "epsilon": 3}
    (tmp_path / "own.jinja").write_text(talk.TEMPLATE)
    ready.verify(Owner.read(own))
    (tmp_path / "own.jinja").write_text(ASK)
    with pytest.raises(UserError, match=r"row 1 of .* cannot become tokens"):
        ready.verify(Owner.read(own))


def test_tokens_are_held_against_the_model_before_a_node_with_a_budget_joins(
    texts: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is that the owner chose a model at all."""
    own = texts() | {"epsilon": 3}
    few = torch.nn.Embedding(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr("peft.PeftModel.get_input_embeddings", lambda _: few, raising=False)
        with pytest.raises(UserError, match=r"row 1 of .* does not know"):
            ready.verify(Owner.read(own))
    monkeypatch.setattr("fedlora.models.PACKAGED", {})
    del own["model"]
    with pytest.raises(UserError, match="epsilon needs model"):
        ready.verify(Owner.read(own))


def test_a_node_with_a_budget_does_not_start_over_rows_that_cannot_be_used(
    texts: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, before it becomes Flower's."""

    def called(command: list[str], **_: Any) -> SimpleNamespace:
        said = io.StringIO()
        monkeypatch.setattr("sys.argv", command[3:])
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
            runpy.run_module(command[3], run_name="__main__")
        return SimpleNamespace(returncode=end.value.code, stdout=said.getvalue())

    monkeypatch.setattr("subprocess.run", called)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("it joined"))
    own, before = texts(text="") | {"epsilon": 3}, os.umask(0o077)  # which the command sets
    try:
        with pytest.raises(UserError, match="row 90 has no value"):
            node.start(own, Superlink("host:1", insecure=True))
    finally:
        os.umask(before)
