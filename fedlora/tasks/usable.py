"""Rows of which nothing may be told but by a private release, not even whether they can be used.

A row that the tokenizer, its template or the model does not take is a blank one: its gradient is
zero and it is never right. And that a model reads rows as long as a run allows is tried once, on a
row of nobody's, so that no row of somebody's decides it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from fedlora.data.labelled import NONE
from fedlora.errors import UserError
from fedlora.evaluation import evaluate
from fedlora.tasks import Task

IDS = "input_ids"
BLANK = 1  # tokens of a blank row


def encode(task: Task, rows: Dataset, vocabulary: int) -> tuple[Any, dict[int, str]]:
    """(the rows as tokens, why some of them, by number from 0, are blank). The reasons are for the
    owner of the rows alone.

    Args:
        vocabulary: how many tokens the model has an embedding of.
    """
    found, faults = _encoded(task, rows)
    bad = [i for i in range(len(found)) if not _known(found.tokens(IDS, i), vocabulary)]
    faults |= dict.fromkeys(bad, "has tokens that the model does not know")
    found = _replaced(task, found, bad)
    if "label" in rows.column_names:
        others = [i for i, label in enumerate(rows["label"]) if label == NONE]
        faults |= dict.fromkeys(others, "has a label that is none of data.labels")
    return found, faults


def rehearse(task: Task, model: Any) -> None:
    """Raises UserError where the model cannot read a row of the greatest length."""
    try:
        evaluate(task, model, task.blank(task.max_length))
    except Exception as e:
        raise UserError(
            f"the model reads no row of {task.max_length} tokens ({type(e).__name__}): lower "
            "data.max_length"
        ) from e


def _encoded(task: Task, rows: Dataset) -> tuple[Any, dict[int, str]]:
    """All at once where that works, else one by one."""
    try:
        return task.encode(rows), {}
    except Exception:
        parts, faults = [], {}
        for i in range(len(rows)):
            try:
                parts.append(task.encode(rows.select([i])))
            except Exception as e:  # of a template or a tokenizer, for any reason
                parts.append(task.blank(BLANK))
                faults[i] = f"cannot become tokens ({e})"
        return type(parts[0]).joined(parts), faults


def _known(ids: torch.Tensor, vocabulary: int) -> bool:
    return len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) < vocabulary


def _replaced(task: Task, table: Any, bad: Iterable[int]) -> Any:
    if not (blank := set(bad)):
        return table
    rows = range(len(table))
    return type(table).joined(
        [task.blank(BLANK) if i in blank else table.select(np.array([i])) for i in rows]
    )
