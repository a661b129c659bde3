"""What `metrics.jsonl`, `answers.jsonl` and `run.json` hold: fields by type, and how they are read.

Whoever shows rows gets them from here. Another machine may have written them, as after a run on
other people's server: what has not these types is no row, and the file is said to be damaged.
`fedlora.report` and `fedlora.answers` say what the fields mean.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedlora.errors import UserError
from fedlora.untrusted import plain

HUGE = 1e300  # sums of some, and what surrounds them on an axis, are still floats


def _possible(x: float) -> float:
    if x and math.isfinite(x) and not 1 / HUGE <= abs(x) <= HUGE:
        raise ValueError(f"a number nearer to 0 than {1 / HUGE:g}, or beyond {HUGE:g}")
    return x  # what is unknown or infinite is not drawn


Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Number = Annotated[float, AfterValidator(_possible)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=HUGE)]


class Line(BaseModel):
    """Fields that are not here are nobody's to show, and may be anything."""

    model_config = ConfigDict(strict=True, extra="allow")


class Round(Line):
    kind: Literal["round"]
    round: Count
    score: Number | None = None
    personalised: Number | None = None
    loss: Number | None = None
    test_loss: Number | None = None
    personalised_loss: Number | None = None
    exact_match: Number | None = None
    rouge_l: Number | None = None
    f1: Number | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0
    clients: Count = 0
    failed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    seconds: Seconds = 0.0
    epsilon: Number | None = None
    delta: Fraction | None = None


class Client(Line):
    kind: Literal["client"]
    round: Count
    client: str
    examples: Count = 0
    weight: Number = 0.0
    loss: Number | None = None
    score: Number | None = None
    test_loss: Number | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0
    seconds: Seconds | None = None
    epsilon: Number | None = None
    delta: Fraction | None = None


class Answer(Line):
    model_config = ConfigDict(extra="forbid")
    round: Count
    row: Count
    prompt: str
    reference: str
    answer: str


class Run(Line):
    """What `run.json` holds."""

    experiment: str
    environment: dict[str, str | int | None] = {}


METRICS: TypeAdapter[Round | Client] = TypeAdapter(
    Annotated[Round | Client, Field(discriminator="kind")]
)
ANSWERS = TypeAdapter(Answer)
RUN = TypeAdapter(Run)


def read(path: Path, kind: TypeAdapter[Any]) -> list[dict[str, Any]]:
    """The file's rows. Raises UserError, with the line's number, where one is none of this kind."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(parsed(line, kind))
            except ValueError as e:
                raise UserError(
                    f"{path}, line {number} is damaged ({e}): remove the line, "
                    "or resume the run, which writes the file anew"
                ) from None
    return rows


def parsed(text: bytes, kind: TypeAdapter[Any]) -> dict[str, Any]:
    """One object. Raises ValueError, with the first mistake in one line, where it is none of this
    kind."""
    try:
        found: dict[str, Any] = json.loads(text.decode("utf-8"))
        kind.validate_python(found)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ValueError(plain(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as e:
        raise ValueError(plain(f"it is not JSON: {e}")) from None
    return found
