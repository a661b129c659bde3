"""What was looked at, as tables and lines for a terminal. Text of rows steers none."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedlora.check.data import Column, Owner
from fedlora.check.model import Bill, Facts
from fedlora.check.tokens import Lengths, Shown
from fedlora.report import amount, plain_table
from fedlora.untrusted import block, plain

ROWS = 3  # that are shown
CLIENTS, LABELS, NAMES = 20, 8, 4  # the most that are named
LEARNT = "bold green"
CHARACTERS = 2000  # of a row


def columns(found: Sequence[Column], examples: bool) -> Table:
    """One line a column, with a value of it if `examples` may be shown."""
    names = ("column", "kind", "different", "used as")
    table = plain_table(*names, *(["for example"] if examples else []))
    for column in table.columns:
        column.justify = "left"
    for c in found:
        different = "–" if c.different is None else f"{c.different:,}"
        shown = (c.name, c.kind, different, c.use or "–", *([c.example] if examples else []))
        table.add_row(*map(_text, shown))
    return table


def owners(found: Sequence[Owner]) -> Table:
    """One line a client, the labels that most rows have by name."""
    totals = {k: sum(o.labels[k] for o in found) for k in found[0].labels} if found else {}
    named = sorted(totals, key=lambda k: -totals[k])[:LABELS]
    named = [k for k in totals if k in named]
    more = [f"{len(totals) - len(named)} others"] if len(totals) > len(named) else []
    table = plain_table("client", "to train on", "held out", *map(_text, named), *more)
    table.columns[0].justify = "left"

    def line(name: str, trained: int, held: int, labels: dict[str, int]) -> None:
        counts = [labels[k] for k in named]
        rest = [sum(labels.values()) - sum(counts)] if more else []
        table.add_row(_text(name), *(f"{n:,}" for n in (trained, held, *counts, *rest)))

    for o in found[:CLIENTS]:
        line(o.client, o.trained, o.held, o.labels)
    if len(found) > CLIENTS:
        table.add_row(f"and {len(found) - CLIENTS} clients more")
    if len(found) > 1:
        line("together", sum(o.trained for o in found), sum(o.held for o in found), totals)
    return table


def served(federation: Any, commonest: tuple[str, float]) -> str:
    """The server's own rows."""
    label, share = commonest
    always = f"; always to say {plain(label)!r} scores {share:.3f} there" if label else ""
    return f"server: {len(federation.test):,} test rows, {len(federation.public):,} public{always}"


def row(number: int, found: Shown) -> Text:
    """A row under its number, with what is learnt in colour and in brackets."""
    text = Text()
    for piece in found.pieces:
        shown = block(piece.text)
        text.append(f"⟦{shown}⟧" if piece.learnt else shown, LEARNT if piece.learnt else None)
    text.rstrip()  # of what a template has behind the last turn
    text.truncate(CHARACTERS, overflow="ellipsis")
    if found.cut:
        text.append(" … cut at data.max_length", "dim red")
    if found.label:
        text.append(" → ").append(f"⟦{plain(found.label)}⟧", LEARNT)
    lines = (Text(f"{'' if i else number:1} ▏").append(x) for i, x in enumerate(text.split("\n")))
    return Text("\n").join(lines)


def lengths(found: Lengths, asked: int) -> str:
    """One line."""
    learnt = "" if found.learnt is None else f"; {found.learnt:.0%} of all tokens are learnt"
    return (
        f"tokens a row: {found.shortest:,} at least, {found.median:,} in the middle, "
        f"{found.longest:,} at most{learnt}\n"
        f"longer than {asked:,} tokens, and cut: {found.cut:,} of {found.rows:,} rows"
    )


def facts(found: Facts) -> str:
    """Some lines."""
    layers = ", ".join(f"{count} {name}" for name, count in found.layers.items())
    more = f" and {len(found.drawn) - NAMES} more" if len(found.drawn) > NAMES else ""
    drawn = f"not in the checkpoint, and drawn: {', '.join(found.drawn[:NAMES])}{more}\n"
    return (
        f"{found.architecture}: {found.parameters:,} parameters in {found.dtype}, "
        f"{found.vocabulary:,} words, rows of up to {found.longest:,} tokens, padded with "
        f"{plain(found.padding)}\n{drawn if found.drawn else ''}"
        f"adapter: {found.kind} of rank {found.rank} on {layers}; a client trains "
        f"{found.trained:,} parameters"
    )


def bill(found: Bill) -> str:
    """Some lines."""
    traffic, memory, needs = found.traffic, found.memory, found.needs
    return (
        f"a client sends {amount(traffic.bytes_up)} a round, and is sent "
        f"{amount(traffic.bytes_down_first)} first, then {amount(traffic.bytes_down)}\n"
        f"a client trains in {amount(memory.together)} of memory beside libraries and rows, the "
        f"server needs {amount(needs.server)}; the run's folder {amount(needs.disk)} of disk"
    )


def step(found: Any, resident: Any, client: str) -> str:
    """One line."""
    config = resident.config
    steps = config.train.steps_a_round(len(resident.encoded(client, "train")))
    return (
        f"{found.rows} rows in {found.seconds:.2g} s on {config.simulation.device}, loss "
        f"{found.loss:.3f}; client {plain(client)} makes {steps} a round, about "
        f"{steps * found.seconds:.2g} s"
    )


def _text(value: str) -> Text:
    """Without markup: a client may be called [bold]."""
    return Text(plain(value))
