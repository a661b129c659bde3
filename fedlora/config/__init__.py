"""The configuration: its sections and fields, each with unit, default and reason.

Values come from the defaults here, then the method's own documented defaults, then a TOML file,
then `section.key=value`; the later one wins. `fedlora.settings` reads and merges them.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedlora.config.privacy import Privacy
from fedlora.config.section import Section

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


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


class Model(Section):
    """The pretrained model that everyone starts from."""

    name: str = Field(
        MINILM,
        min_length=1,
        description="A hub name or a local folder. MiniLM-L6 is the default: small, and installed "
        "from a package, so that it needs no hub.",
    )
    task: str = Field("classification", description="What is learnt; see fedlora.tasks.")


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


class Data(Section):
    """Rows, and how they are divided among clients."""

    name: str = Field(
        "sentiment",
        min_length=1,
        description="'sentiment' (bundled), a hub name, a .csv/.jsonl/.parquet file, or a folder "
        "with train and test files, or (partition = 'split') with one file a client; there test "
        "and public are the server's own rows, and with nothing else it is a coordinator's.",
    )
    text: str = Field("text", description="The column with the text, as the bundled data has it.")
    label: str = Field("label", description="The column with the label, a string or an integer.")
    labels: list[str] | None = Field(
        None,
        min_length=2,
        description="The label names, in order, where nobody's rows have them all; by default "
        "those of the data.",
    )
    partition: Literal["iid", "dirichlet", "natural", "shards", "split"] = Field(
        "natural",
        description="How rows come to clients: by a column's values (real owners), evenly, "
        "with skewed labels, in label-sorted shards, or one file a client.",
    )
    clients: PositiveInt = Field(
        4, description="Number of clients for iid, dirichlet and shards; the data says otherwise."
    )
    by: str = Field("domain", description="natural: the column whose values are the clients.")
    pooled: bool = Field(
        False, description="One client with everyone's rows: the centralised baseline."
    )
    concentration: PositiveFloat = Field(
        0.5, description="dirichlet: smaller is more skewed in labels; 0.5 is the literature's."
    )
    shards: PositiveInt = Field(
        2, description="shards: label-sorted pieces a client; FedAvg's paper has two."
    )
    rows: PositiveInt | None = Field(
        None, description="Most rows a client uses (training and held out); all by default."
    )
    holdout: float = Field(
        0.1, ge=0, lt=1, description="Share of a client's rows kept for its personalised score."
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="Share of rows for the server's test where there is no file."
    )
    public: int = Field(
        128,
        ge=0,
        description="Rows set aside for the server (Fed-SB's start), at most a tenth of all; "
        "nobody trains on them.",
    )
    max_length: PositiveInt = Field(
        48, description="Tokens a row; longer ones are truncated, as 3 % of the bundled are."
    )

    @model_validator(mode="after")
    def _distinct(self) -> "Data":
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels names a label twice")
        return self


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


class Simulation(Section):
    """This machine."""

    workers: int | None = Field(
        None, ge=0, description="Worker processes; by default one a core; 0 works in-process."
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


class Config(Section):
    run: Run = Run()
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data = Data()
    strategy: dict[str, Any] = {"name": "fedex"}
    train: Train = Train()
    privacy: Privacy = Privacy()
    simulation: Simulation = Simulation()

    @property
    def method(self) -> str:
        return str(self.strategy["name"])
