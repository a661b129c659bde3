"""What each kind of event says: its fields by name and type.

An event that says anything else is not heard: what shows it may rely on this.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Begin(Fields):
    rounds: Count
    start: Count


class Phase(Fields):
    round: Count
    name: str
    clients: Count


class Client(Fields):
    round: Count
    phase: str
    client: str
    loss: float | None
    reason: str | None


class Row(Fields):
    """What is shown of a round's row; it has more."""

    model_config = ConfigDict(strict=True, extra="allow")
    round: Count
    score: float | None = None
    personalised: float | None = None
    loss: float | None = None
    bytes_up: Count | None = None
    bytes_down: Count | None = None
    seconds: float | None = None


class Round(Fields):
    row: Row


class Text(Fields):
    text: str


class File(Fields):
    size: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Files(Fields):
    """A run directory's files by path, and the paths of those that are not sent."""

    files: dict[str, File]
    left: list[str]


class Part(Fields):
    """One part of a file, in base64."""

    path: str
    part: Count
    data: str


class End(Fields):
    """The last event."""


KINDS: Mapping[object, type[Fields]] = {
    "begin": Begin,
    "phase": Phase,
    "client": Client,
    "round": Round,
    "note": Text,
    "error": Text,
    "files": Files,
    "file": Part,
    "end": End,
}


def fit(kind: Any, fields: Mapping[str, Any]) -> bool:
    """Whether these are the fields of an event of this kind."""
    try:
        KINDS[kind].model_validate(fields)
    except (KeyError, TypeError, ValidationError):
        return False
    return True
