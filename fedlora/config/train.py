"""The configuration's section on a client's work in a round."""

import math
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fedlora.config.section import Section


class Train(Section):
    """What a client does in a round."""

    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="Made afresh each round, so that no moments have to stay or travel."
    )
    lr: PositiveFloat = Field(
        1e-3, description="Learning rate: LoRA's usual one; methods bring their own."
    )
    batch_size: PositiveInt = Field(16, description="Rows a step; 16 keeps one core busy.")
    steps: PositiveInt | None = Field(
        30,
        description="Steps a round, over the rows as often as needed, so that clients with few "
        "rows and with many take as long; null: epochs.",
    )
    epochs: PositiveInt = Field(1, description="Passes over the rows a round, where steps is null.")
    weight_decay: float = Field(
        0.0, ge=0, description="AdamW's or SGD's; off, since an adapter that decays forgets."
    )
    clip: PositiveFloat | None = Field(
        1.0,
        description="Largest L2 norm of a step's gradient, against rare spikes; null: none. "
        "Private training bounds every row's by privacy.clip instead.",
    )

    def steps_a_round(self, rows: int) -> int:
        """Steps of one round for a client with so many training rows."""
        return self.steps or self.epochs * math.ceil(rows / self.batch_size)
