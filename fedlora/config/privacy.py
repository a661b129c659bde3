"""The configuration's section on differential privacy."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedlora.config.section import Section

LARGEST_NOISE = 1e6  # σ


class Privacy(Section):
    """Differential privacy: off until a budget (epsilon) or a noise (noise_multiplier) is given.

    docs/privacy.md says what is protected, from whom, and what is not.
    """

    epsilon: PositiveFloat | None = Field(
        None,
        allow_inf_nan=False,
        description="ε of each client over the whole run: σ is solved for it, and nobody goes past "
        "it. Below 1 is strong, 3 to 8 usual for fine-tuning.",
    )
    noise_multiplier: PositiveFloat | None = Field(
        None,
        le=LARGEST_NOISE,
        description="σ, the noise's deviation over the clipping norm, where it is not to be "
        "solved; with epsilon too, that is where a client stops.",
    )
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="δ, below 1/n; by default 1/(2n) for each client of n training rows (central: "
        "n clients).",
    )
    mode: Literal["local", "central"] = Field(
        "local",
        description="local: every client trains by DP-SGD, which protects each row, from the "
        "server too. central: a trusted server adds noise to the sum of clipped updates, which "
        "protects each client as a whole.",
    )
    clip: float = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="C, the largest L2 norm of one row's gradient (central: of one client's "
        "update): far from where fp32's range ends, as clipping is computed in it.",
    )
    accountant: Literal["rdp", "prv"] = Field(
        "rdp", description="How ε is composed; prv is tighter and slower."
    )
    engine: Literal["stacked", "hooks"] | None = Field(
        None,
        description="How each row's gradient is made: an adapter a row, or Opacus's hooks. By "
        "default stacked, which is the faster and knows every adapter.",
    )
    physical_batch: PositiveInt = Field(
        64, description="Most rows in memory at once; larger batches go through in pieces."
    )
    statistics: bool = Field(
        True,
        description="Release gradients' norms as a noised histogram, from the same budget: it "
        "costs 2 % more noise and shows whether clip fits.",
    )
    insecure_seed: int | None = Field(
        None,
        ge=0,
        description="Noise and samples that repeat, for tests and studies. Whoever knows the seed "
        "can take the noise off; left out, both come from the operating system's entropy.",
    )

    @model_validator(mode="after")
    def _switched_on(self) -> "Privacy":
        if not self.on and (given := self.model_dump(exclude_defaults=True)):
            raise ValueError(
                f"{', '.join(given)} without a budget protects nobody: set privacy.epsilon "
                "(or privacy.noise_multiplier) too"
            )
        return self

    @property
    def on(self) -> bool:
        return self.epsilon is not None or self.noise_multiplier is not None

    @property
    def local(self) -> bool:
        """Whether clients train by DP-SGD."""
        return self.on and self.mode == "local"

    @property
    def central(self) -> bool:
        """Whether the server adds the noise."""
        return self.on and self.mode == "central"
