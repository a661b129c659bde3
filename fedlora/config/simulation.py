"""The configuration's section on this machine."""

from pydantic import Field, PositiveFloat, PositiveInt

from fedlora.config.section import Section

DEVICE = r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$"


class Simulation(Section):
    """This machine."""

    device: str = Field(
        "auto",
        pattern=DEVICE,
        description="Where the models are, the server's too: cpu; cuda, every GPU that "
        "CUDA_VISIBLE_DEVICES leaves; cuda:0, that one; …; auto is cuda where there is a GPU, else "
        "the CPU. A node's owner settles its own.",
    )
    deterministic: bool = Field(
        True,
        description="Whether a GPU takes algorithms that give the same bits each time, as a CPU's "
        "do; false: faster ones, and what a run repeats is equal to rounding. For models that need "
        "one which a GPU has in no other way.",
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="Worker processes; by default one a core, and on GPUs one each, as each holds "
        "the model anew; 0 works in-process.",
    )
    threads: PositiveInt = Field(
        1, description="Threads of a worker: one is fastest when every core has a worker."
    )
    copies: PositiveInt | None = Field(
        None,
        description="Clients that share passes over the frozen model; 1: one after another. By "
        "default as many as make passes large, fit in memory and leave no worker idle. Chosen "
        "when a run starts and kept with it, as sums are rounded otherwise in other company.",
    )
    memory: PositiveFloat | None = Field(
        None,
        description="MB that a worker may use for training besides the model; by default its "
        "share of half of what is free when the run starts, and kept with the run.",
    )
