"""The configuration's section on what is trained on top of the model."""

import re
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from fedlora.config.section import Section

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")


class Adapter(Section):
    """What is trained on top of the frozen model."""

    kind: Literal["lora", "vera", "lora-sb"] | None = Field(
        None, description="LoRA, VeRA or B·R·A; by default the one the method is defined on."
    )
    rank: PositiveInt = Field(
        8, description="r, at most the smaller side of any target; 8 is small and enough here."
    )
    alpha: PositiveFloat | None = Field(
        None, description="The scale's numerator; by default 2·rank for LoRA, so that s = 2."
    )
    rslora: bool = Field(
        False,
        description="s = alpha / sqrt(r) in place of alpha / r, which keeps steps the same size "
        "as ranks grow (arXiv:2312.03732).",
    )
    target_modules: list[str] | str | None = Field(
        None,
        description="Names of the linear layers to adapt, or 'all-linear': all but the output "
        "layer, gates of one output, and what PEFT cannot adapt or no text comes to; by default "
        "PEFT's choice for the architecture (query and value in BERT).",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of inputs dropped in front of A; off, as rounds are short.",
    )
    init: str = Field(
        "default",
        description="How A and B begin, by PEFT's rules: default (A uniform, B zero), gaussian, "
        "orthogonal, pissa (arXiv:2404.02948), pissa_niter_K (its fast SVD of K steps) or olora "
        "(arXiv:2406.01775). Those that look at data (eva, corda, lora_ga) are not offered, as "
        "nobody holds all of it, nor those that change what is trained or the base's format "
        "(mica, loftq).",
    )
    dora: bool = Field(
        False,
        description="DoRA (arXiv:2402.09353): W's rows have trained norms M, and W0 + s·B·A gives "
        "their directions. Off, as a pass takes longer, and a mean of parts is no mean of W.",
    )
    head: Literal["trained", "frozen"] = Field(
        "trained", description="The task head: trained in full, or as the server drew it."
    )

    @field_validator("init")
    @classmethod
    def _known(cls, init: str) -> str:
        if init in INITS or re.fullmatch(r"pissa_niter_[1-9]\d*", init):
            return init
        raise ValueError(f"no such initialisation (known: {', '.join(INITS)}, pissa_niter_K)")

    @model_validator(mode="after")
    def _fits(self) -> "Adapter":
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(
                f"init = orthogonal halves the rank, and rank = {self.rank} is odd: make it even"
            )
        if self.dora and self.takes_out:
            raise ValueError(
                f"init = {self.init} takes a part of W0 out as a residual, which DoRA's norm does "
                "not see: use another init, or dora = false"
            )
        return self

    @property
    def takes_out(self) -> bool:
        """Whether the adapter begins with a part of W0, which is taken out of it."""
        return self.init == "olora" or self.init.startswith("pissa")

    @property
    def begins_full(self) -> bool:
        """Whether B is not zero at the start."""
        return self.takes_out or self.init == "orthogonal"
