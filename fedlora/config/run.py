"""The configuration's section on the federation."""

import math
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedlora.config.section import Section


class Run(Section):
    """The federation: how long, who takes part, and where it is recorded."""

    rounds: PositiveInt = Field(
        5, description="Rounds of training; the default task has settled by then."
    )
    clients_per_round: PositiveInt | float = Field(
        1.0,
        description="Clients sampled a round: a whole number, or a fraction in (0, 1] of those "
        "present. All by default, since a handful of owners is the common case.",
    )
    min_clients: PositiveInt = Field(
        1, description="Clients that must have joined before round 1; real nodes come one by one."
    )
    min_replies: PositiveInt = Field(
        1, description="Fewest usable updates; a round with fewer leaves the state as it was."
    )
    deadline: PositiveFloat = Field(
        3600.0,
        description="Seconds to wait for a phase's replies, or for enough clients: an hour, as a "
        "slow owner is better waited for than lost.",
    )
    norm_bound: PositiveFloat | None = Field(
        None,
        description="Largest L2 norm of an update's change; larger ones are dropped.",
    )
    baseline: bool = Field(
        False,
        description="Score the model before round 1 too, as round 0; it is the pretrained one, and "
        "scoring takes its time.",
    )
    weights: Literal["examples", "uniform"] = Field(
        "examples", description="p_i: in proportion to training rows (FedAvg's choice), or equal."
    )
    wire: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="Number format of trained parts on the wire, both ways. Frozen parts and "
        "residuals always cross in fp32, where low precision would drown them.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of every random stream; the same seed gives the same bits."
    )
    name: str = Field(
        "",
        pattern=r"^[\w.-]*$",
        description="The run directory's name; by default the method's name and the time.",
    )
    dir: str = Field("runs", description="The folder that holds run directories.")
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"],
        description="Where the run can be watched beside its own files: event files in the run "
        "directory, as they need nobody; W&B (WANDB_PROJECT and WANDB_ENTITY say where, "
        "WANDB_API_KEY or `wandb login` lets in, WANDB_MODE=offline writes files only); MLflow "
        "(MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME); [] for none. The server's environment "
        "counts, in a deployment the ServerApp's.",
    )
    keep: Literal["latest", "all", "updates"] = Field(
        "latest",
        description="Checkpoints kept: the latest two (the second in case one is damaged), all, "
        "or all with every tensor sent and received, to check a method by hand.",
    )

    @model_validator(mode="after")
    def _fraction(self) -> "Run":
        n = self.clients_per_round
        if isinstance(n, float) and not 0 < n <= 1:
            raise ValueError("clients_per_round is a whole number, or a fraction in (0, 1]")
        return self

    def sampled(self, present: int) -> int:
        """Clients of a round where so many are present: halves are rounded up, at least one."""
        n = self.clients_per_round
        return min(n, present) if isinstance(n, int) else max(1, math.floor(n * present + 0.5))

    @property
    def wire_dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.wire]
