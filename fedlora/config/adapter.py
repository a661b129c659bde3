"""The configuration's section on what is trained on top of the model."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fedlora.config.section import Section


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
        description="Names of the linear layers to adapt, or 'all-linear'; by default PEFT's "
        "choice for the architecture (query and value in BERT).",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of inputs dropped in front of A; off, as rounds are short.",
    )
    head: Literal["trained", "frozen"] = Field(
        "trained", description="The task head: trained in full, or as the server drew it."
    )
