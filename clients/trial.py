"""A step of plain training, made to see that it works and what it takes. Nothing of it is kept."""

import math
from dataclasses import dataclass

from clients import passes
from clients.asked import Fit, Fitted
from fedlora.errors import UserError
from fedlora.guard import trains
from fedlora.resident import Resident
from fedlora.stacking import Member
from fedlora.strategy import Round
from fedlora.training import Trained


@dataclass(frozen=True)
class Step:
    """What a step saw, and took once everything was warm."""

    rows: int
    loss: float
    seconds: float


def step(resident: Resident, client: str) -> Step:
    """The second of two first steps of a client, by the plain loop.

    Raises:
        UserError: the loss is no number.
    """
    config, adapter = resident.config, resident.adapter
    first = Round(1, "train", config.run.seed, config.run.wire_dtype)
    rows, scale = resident.encoded(client, "train"), adapter.scaling.at(config.adapter.rank)
    member = Member(adapter.initial(), scale, rows, (config.run.seed, "check"))
    asked = Fit(member, trains(resident.strategy, first, adapter.parts), steps=1)
    passes.alone(resident, asked, None)  # the first one fills caches
    fitted = passes.alone(resident, asked, None)
    assert isinstance(fitted, Fitted) and isinstance(fitted.told, Trained)
    if not math.isfinite(fitted.told.loss):
        raise UserError("the loss is no number: the model does not fit these rows")
    return Step(fitted.told.rows, fitted.told.loss, fitted.seconds)
