"""A benchmark's tables on the terminal, and what it was to reach."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedlora import report


def show(made: dict[str, Any]) -> None:
    """A table of text: its title, its columns and its rows."""
    shown = Table(title=made["title"], box=box.SIMPLE_HEAD)
    for i, header in enumerate(made["columns"]):
        shown.add_column(header, justify="right" if i else "left", no_wrap=True)
    for row in made["rows"]:
        shown.add_row(*row)
    report.show(shown, Console())


def target(what: str, target: str, measured: str, met: bool) -> dict[str, Any]:
    """As RESULTS.md lists them."""
    return {"what": what, "target": target, "measured": measured, "met": met}
