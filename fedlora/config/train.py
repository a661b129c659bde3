"""The configuration's section on a client's work in a round."""

import math
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedlora.config.section import Section


class Train(Section):
    """What a client does in a round."""

    optimizer: Literal["adamw", "sgd", "lora-plus", "lora-fa"] = Field(
        "adamw",
        description="Made afresh each round, so that no moments have to stay or travel. lora-plus "
        "is AdamW with a faster B (LoRA+, arXiv:2402.12354), lora-fa leaves A as it is and "
        "trains B by AdamW on the gradient that is nearest to full fine-tuning's (LoRA-FA, "
        "arXiv:2308.03303); both by PEFT's rules.",
    )
    lr: PositiveFloat = Field(
        1e-3, description="Learning rate: LoRA's usual one; methods bring their own."
    )
    lr_ratio: float = Field(
        16.0,
        ge=1,
        description="lora-plus: B's learning rate over A's; the paper's own choice is 2^4.",
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="sgd's; off, as its memory is lost with each round."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="How the learning rate goes down to zero once it is warm; constant, as "
        "federated rounds are few and short.",
    )
    schedule_over: Literal["federation", "round"] = Field(
        "federation",
        description="What schedule and warm-up are counted over: all rounds, where a client that "
        "sat some out is as far as the others, or each round anew.",
    )
    warmup: int = Field(
        0,
        ge=0,
        description="Steps in which the learning rate rises from lr / warmup to lr; off, as "
        "adapters start from zero.",
    )
    proximal: float = Field(
        0.0,
        ge=0,
        description="FedProx's mu (arXiv:1812.06127): mu (w - w_sent) joins the gradient of every "
        "part that the client shares, once that is clipped (and, under privacy, noised); off, "
        "as few steps do not drift far.",
    )
    batch_size: PositiveInt = Field(16, description="Rows a step; 16 keeps one core busy.")
    micro_batch: PositiveInt | None = Field(
        None,
        description="Most rows of one pass; a step's gradients add up over its passes. By default "
        "as many as memory allows. Private training has privacy.physical_batch.",
    )
    steps: PositiveInt | None = Field(
        30,
        description="Steps a round, over the rows as often as needed, so that clients with few "
        "rows and with many take as long; null: epochs.",
    )
    epochs: PositiveInt = Field(1, description="Passes over the rows a round, where steps is null.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="The optimizer's; off, since an adapter that decays forgets. Under lora-plus "
        "the head's biases and norms have none, as in PEFT.",
    )
    clip: PositiveFloat | None = Field(
        1.0,
        description="Largest L2 norm of a step's gradient, against rare spikes; null: none. "
        "Private training bounds every row's by privacy.clip instead.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum goes with optimizer = sgd: {self.optimizer} has moments of its own"
            )
        if self.steps and self.schedule_over == "round" and self.warmup >= self.steps:
            raise ValueError(
                f"warmup = {self.warmup} is not shorter than the {self.steps} steps of a round, "
                "which schedule_over = round counts it over"
            )
        return self

    @property
    def decays(self) -> bool:
        """Whether the learning rate depends on how many steps there are."""
        return self.schedule != "constant"

    @property
    def counts_rounds(self) -> bool:
        """Whether the learning rate depends on how many rounds there are."""
        return self.decays and self.schedule_over == "federation"

    @property
    def paced(self) -> bool:
        """Whether the learning rate changes at all."""
        return self.decays or self.warmup > 0

    @property
    def freezes(self) -> frozenset[str]:
        """Parts that this optimizer does not train."""
        return frozenset({"A"} if self.optimizer == "lora-fa" else ())

    def steps_a_round(self, rows: int) -> int:
        """Steps of one round for a client with so many training rows."""
        return self.steps or self.epochs * math.ceil(rows / self.batch_size)
