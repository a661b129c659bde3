"""What is learnt: a task turns rows into batches, batches into losses, and scores a model.

A new task is a class with the methods of `Task` and a line in `TASKS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from fedlora.config import Config
from fedlora.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedlora.pretrained import Pretrained

Kind = Literal["labelled", "conversations"]

# By module and name, so that a task's libraries are imported where it is used only.
TASKS = {
    "classification": ("fedlora.tasks.classification", "Classification"),
    "instruction": ("fedlora.tasks.instruction", "Instruction"),
}
# Configuration that a task wants, by dotted key.
DEFAULTS: dict[str, dict[str, Any]] = {"instruction": {"data.max_length": 512}}


@dataclass(frozen=True)
class Score:
    """A model on some rows: `score` is the fraction right, `loss` in nats; both are means in which
    a row counts as much as the task says (NaN where there are no rows)."""

    score: float
    loss: float
    rows: int


class Task(Protocol):
    """What training and evaluation ask of a task. What encoded rows are is the task's own affair;
    they have what `fedlora.tasks.encoded.Encoded` has: a `len`, `length`, `select` and `joined`."""

    type: str  # PEFT's name of the task
    kind: Kind  # of rows: labelled texts, or conversations
    learn: str  # what of a row is learnt
    architecture: Any  # Transformers' AutoModelFor…
    labels: Sequence[str]
    notes: list[str]  # what is to be said of the model, once it is made
    lacking: set[str]  # the weights that the checkpoint does not have, and that were drawn
    max_length: int
    pretrained: "Pretrained"
    tokenizer: "PreTrainedTokenizerBase"
    steady: bool  # whether a pass's shapes are those of its batch alone, whatever is to be learnt

    def __init__(self, config: Config, labels: Sequence[str]) -> None: ...

    def model(self, seed: int, stored: bool = False) -> "PreTrainedModel":
        """The pretrained model; what the checkpoint lacks is drawn from `seed`. In the format that
        it is `stored` in, or that of the configuration."""
        ...

    def encode(self, rows: "Dataset") -> Any:
        """The rows as tokens."""
        ...

    def blank(self, length: int) -> Any:
        """One row of so many tokens of which nothing is to be learnt: its loss is 0, and it is not
        right."""
        ...

    def batch(self, encoded: Any, indices: Sequence[int]) -> dict[str, Tensor]:
        """Some of the rows, padded to one length; every entry is (rows, ...)."""
        ...

    def counts(self, encoded: Any, indices: Sequence[int]) -> Tensor:
        """(rows,), float64: how much each row counts in a mean over rows, whether of losses in a
        step or of what `outcomes` says."""
        ...

    def losses(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """(rows,): one loss a row, which depends on that row alone."""
        ...

    def outcomes(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(rows,) each: the fraction of a row that is right, in [0, 1]; and its loss."""
        ...


def load(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, 1)
        raise UserError(
            f"there is no task {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}. "
            f"Set model.task to one of: {', '.join(TASKS)}."
        )
    module, attribute = TASKS[name]
    return getattr(import_module(module), attribute)
