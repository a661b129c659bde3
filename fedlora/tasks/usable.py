"""Whether rows can be used at all, found out before they are.

Of rows of which nothing may be told but by a private release not even that is told. One that the
tokenizer, its template or the model does not take is a blank one: its gradient is zero and it is
never right. And that a model reads rows as long as a run allows is tried once, on a row of
nobody's, so that no row of somebody's decides it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from fedlora import limits
from fedlora.data.labelled import NONE
from fedlora.errors import UserError
from fedlora.evaluation import evaluating
from fedlora.models import quiet
from fedlora.tasks import Task
from fedlora.tasks.likelihood import IGNORED

IDS, TARGETS = "input_ids", "labels"
BLANK = 1  # tokens of a blank row
MANY = 0.1  # of the tokens, of unknown words: more than names and emoji are


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
    """Raises UserError where the model cannot read a row of the greatest length, beside another."""
    if (fault := _fault(task, model, task.max_length)) is None:
        return
    lengths = range(1, task.max_length)
    most = bisect_left(lengths, True, key=lambda n: _fault(task, model, n) is not None)
    pad = task.tokenizer.pad_token
    if most > BLANK:
        mend = f"set data.max_length={most}"
    elif most or pad is None:  # rows that nothing pads are read
        mend = "give its tokenizer a token to pad rows with (pad_token)"
        mend += "" if pad is None else f", which {pad!r} is not to it"
    else:
        mend = "set model.name to another"
    raise UserError(f"the model reads no rows of {task.max_length} tokens ({fault}): {mend}")


def teach(task: Task, rows: Any) -> None:
    """Raises UserError where nothing is to be learnt from these rows (at least one), or special
    tokens alone: what ends an answer, say, or a word that the tokenizer does not know. Of labels,
    nothing is to be learnt by a text without a word."""
    targets = rows.inputs.get(TARGETS)
    learnt = rows.inputs[IDS] if targets is None else targets
    special = torch.tensor(sorted(limits.special(task.tokenizer)), dtype=learnt.dtype)
    words = (learnt != IGNORED) & ~torch.isin(learnt, special)
    if any(words[rows.starts[i] : rows.starts[i + 1]].any() for i in rows.rows):
        return
    if targets is None:
        raise UserError(
            f"no row has a word that the model reads: all {len(rows):,} texts are special tokens "
            "to the tokenizer, as unknown words are. Set model.name to a model of the rows' "
            "language"
        )
    if cut := rows.truncated:
        raise UserError(
            f"no row has a word left to be learnt: {cut:,} of {len(rows):,} are longer than "
            f"{task.max_length} tokens and lose their answers. Set data.max_length higher, as far "
            "as the model reads, or shorten the rows"
        )
    raise UserError(
        f"no row has a word that is learnt: all {len(rows):,} answers are special tokens to the "
        "tokenizer, as unknown words are. Set model.name to a model of the rows' language"
    )


def unknown(task: Task, rows: Any) -> str:
    """How many of the rows' words the tokenizer does not know, in words; "" where these are few, or
    no token stands for them alone."""
    tokenizer: Any = task.tokenizer
    own = tokenizer.unk_token_id
    if own is None or own in (tokenizer.eos_token_id, tokenizer.bos_token_id):  # as GPT-2 has it
        return ""
    ids = torch.cat([rows.tokens(IDS, i) for i in range(len(rows))] or [torch.zeros(0)])
    special = torch.tensor(sorted(limits.special(tokenizer) - {own}), dtype=ids.dtype)
    words, lost = int((~torch.isin(ids, special)).sum()), int((ids == own).sum())
    if lost < MANY * words or not lost:
        return ""
    return (
        f"{lost:,} of {words:,} tokens of the rows are {tokenizer.unk_token}, words that the "
        "tokenizer does not know: is the model one of their language and spelling?"
    )


def cuts(task: Task, tables: Sequence[Any], asked: int) -> str:
    """What a limit on length costs rows, in words; "" where none is cut and the limit is the one
    that was asked for."""
    cut, rows = (sum(x) for x in zip(*((t.truncated, len(t)) for t in tables), strict=True))
    limit = f"data.max_length = {asked:,} tokens"
    if lower := task.max_length < asked:
        limit = f"the {task.max_length:,} tokens that the model reads, below {limit}"
    if not cut:
        return f"no row is longer than {limit}" if lower else ""
    silent = sum(int((task.counts(t, range(len(t))) == 0).sum()) for t in tables if len(t))
    lost = f"; {silent:,} of them have nothing left to be learnt or scored" if silent else ""
    return f"{cut:,} of {rows:,} rows are longer than {limit}, and lose their ends{lost}"


@torch.no_grad()
def _fault(task: Task, model: Any, length: int) -> str | None:
    """What the model raises over a row of so many tokens and one that is padded to it."""
    rows = [task.blank(length), task.blank(BLANK)]
    try:
        with evaluating(model), quiet():
            task.outcomes(model, task.batch(type(rows[0]).joined(rows), [0, 1]))
    except Exception as e:
        return f"{type(e).__name__}: {(str(e).splitlines() or ['no reason'])[0]}"
    return None


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
