"""Texts that others wrote, on their way to people: a client's name, an error's reason, an answer.

Whoever sends a text chooses each of its characters, and every format has some that mean more than
themselves: a newline begins another line of a log, a bar another cell, an escape moves a
terminal's cursor. A text is made plain where it enters a format, once, by the format's function
here; a client's reasons already where they arrive (server.exchange).

    plain      one line, of characters that can be seen: names, reasons, lines of a log
    block      several lines, for terminals and pages: errors, answers
    markdown   in Markdown's running text and cells      code    in Markdown, as code
    latex      in LaTeX's running text and cells         field   in a table that programs read
    Log        the handler of a process's log
"""

import logging
import re
import sys

MOST = 300  # characters of a name or a reason
LONG = 4000  # of a whole line, or a whole reason where it is kept

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "ε": r"$\varepsilon$",
}

# Letters and marks that show as nothing, beside those that Unicode itself calls not printable.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\uffa0"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_JOINERS = "\u200c\u200d"  # between letters of a word, in several scripts
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~#$@]|&(?=#?\w+;)|:(?=//)|(?<=www)\.", re.IGNORECASE)
_FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")


def plain(text: object, most: int = MOST) -> str:
    """One line of at most `most` characters, all of which can be seen. Newlines and tabs become
    spaces; controls, marks of direction, what has no width, and halves of characters are written
    as escapes (`\\x1b`); what is too long ends in an ellipsis. What is neither text, a number nor
    an error is only named by its type."""
    shown = _said(text)[: most + 1]
    if not (shown.isascii() and shown.isprintable()):  # letter by letter is slow
        shown = "".join(map(_seen, shown))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def named(text: object, most: int = 128) -> bool:
    """Whether this can be somebody's name as it is: text of 1 to `most` characters that can all be
    seen, none of them a space at either end."""
    return isinstance(text, str) and text == text.strip() != "" and text == plain(text, most)


def block(text: str) -> str:
    """Several lines, as they are but for what would steer a terminal or turn the text around."""
    return "".join(c if c == "\n" or c in _JOINERS else _printable(c) for c in text)


def markdown(text: str, most: int = MOST) -> str:
    """A text in which nothing is markup, HTML or an address that becomes a link."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", plain(text, most))


def code(text: str) -> str:
    """Code in running text or in a cell. What would end it there is escaped, between HTML's tags:
    nothing can be escaped between backticks."""
    shown = plain(text)
    if shown.strip() and not re.search("[`|]", shown):
        return f"`{shown}`"
    return f"<code>{markdown(text)}</code>"


def latex(text: str) -> str:
    """A text in which nothing is a command. Where it begins a line of a table, a star or a bracket
    would belong to the one before, which ended in two backslashes."""
    shown = "".join(LATEX.get(c, c) for c in plain(text))
    return f"{{}}{shown}" if shown.lstrip().startswith(("*", "[")) else shown


def field(value: object) -> object:
    """A cell of a CSV file. Spreadsheets calculate a text that begins like a formula, wherever it
    came from: it gets an apostrophe in front, as they write it themselves. No text: as it is."""
    if not isinstance(value, str):
        return value
    shown = plain(value)
    return f"'{shown}" if _FORMULA.match(shown.lstrip()) else shown


class Log(logging.StreamHandler):  # type: ignore[type-arg]
    """Lines on standard error: a message is one, and what led to an error steers no terminal."""

    def __init__(self, format: str) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Lines(format))


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = plain(record.message, LONG)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return block(super().format(record))


def _said(text: object) -> str:
    try:
        if isinstance(text, str | int | float | BaseException):
            return str(text)
    except ValueError:  # a number that is too long to be written
        pass
    return f"({type(text).__name__} in place of a text)"


def _seen(c: str) -> str:
    return _escaped(c) if _INVISIBLE.match(c) else _printable(c)


def _printable(c: str) -> str:
    return c if c.isprintable() else " " if c.isspace() else _escaped(c)


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
