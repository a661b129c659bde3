"""What a node's owner settles: whose rows these are, where, and what a run may do with them.

The settings are Flower's `--node-config`; a run is held against them before anything is imported or
loaded for it. A simulation has no owner and no limits.
"""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from clients import devices, refusals
from clients.channel import state_dir
from clients.devices import Mode
from clients.refusals import COLUMNS, is_folder, refused
from clients.refusals import Refused as Refused
from fedlora.errors import UserError

if TYPE_CHECKING:
    from fedlora.config import Config
    from fedlora.strategy import Strategy

MB = 10**6
SIMULATED = {"partition-id", "num-partitions", "state-dir"}

log = logging.getLogger("fedlora.client")


class Owner(BaseModel):
    """One node's settings, written with dashes: `max-rounds=50`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        str_strip_whitespace=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    client: str | None = Field(
        None, min_length=1, description="Who this is, the same for ever; no two nodes share it."
    )
    data: str | None = Field(
        None,
        min_length=1,
        description="The rows: a .csv, .tsv, .jsonl, .json (these also with .gz) or .parquet file, "
        "or 'sentiment' or 'definitions', the bundled rows of this client. Without it a node "
        "serves runs on bundled data alone.",
    )
    text: str | None = Field(
        None, min_length=1, description="The column with the text; by default text."
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="The column with the label; by default label. No run can choose another: "
        "without epsilon, and where the run brings no data.labels, the values in it are told to "
        "the server, as the labels to agree on.",
    )
    prompt: str | None = Field(
        None,
        min_length=1,
        description="Conversations: the column with the question, where the rows are in none of "
        "the usual forms. No run can choose another than prompt, context and response.",
    )
    context: str | None = Field(
        None, min_length=1, description="The column with what comes with the question."
    )
    response: str | None = Field(None, min_length=1, description="The column with the answer.")
    rank: NonNegativeInt = Field(0, description="Largest rank that this node can train; 0: any.")
    device: str = Field(
        "cpu",
        pattern=devices.PATTERN,
        description="Where the model is: cuda:0; auto is a CUDA GPU where there is one; "
        "cuda:0,1,2,3 are several, which train this client together.",
    )
    parallel: Mode = Field(
        "ddp",
        description="Of several devices: ddp has the whole base on each, fsdp a share of every "
        "block, for a base that one has no room for. What comes out is the same to rounding.",
    )
    threads: NonNegativeInt = Field(0, description="Threads of torch; 0: as many as it chooses.")
    state_dir: Path = Field(
        default_factory=lambda: state_dir({}),
        description="Where this node keeps what stays with it. It needs no backup but for the "
        "privacy accounts.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="A folder, or with revision a name of the hub, used in place of the run's "
        "model.name; its digest must agree.",
    )
    revision: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{40}$",
        description="The commit of model, where that is a name of the hub. With epsilon a run can "
        "choose no files: it is served with model, or with a model that a package holds which is "
        "installed here.",
    )
    chat_template: Path | None = Field(
        None,
        description="A file of Jinja by which conversations become text; by default the model's "
        "own template. A run's is never rendered here: it has to be the same, to the byte.",
    )
    methods: tuple[str, ...] | None = Field(
        None,
        description="The methods that may run here, with commas between; by default the built-in "
        "ones. One of your own is my_module:MyMethod: its code is yours to trust.",
    )
    max_rounds: PositiveInt = Field(
        1000,
        description="Most rounds of a run: of training, and of evaluation, counted on this node's "
        "disk as they are answered, whatever number the server gives them.",
    )
    max_total_rounds: PositiveInt = Field(
        10000, description="Most rounds of all runs together, counted likewise."
    )
    max_steps: PositiveInt = Field(10000, description="Most training steps of a round.")
    max_payload: PositiveFloat = Field(4000.0, description="Most MB of a message.")
    epsilon: PositiveFloat | None = Field(
        None,
        allow_inf_nan=False,
        description="Largest ε of these rows over all runs together, at this node's delta: a run "
        "must train by local DP-SGD on all rows, and this client sits out before it would go past. "
        "What was spent is in account-*.json of the state directory: keep a copy. What runs "
        "without privacy gave away is not in it.",
    )
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="δ of that budget, whatever a run says; by default 1/(2n) for the n rows of "
        "the data. It is fixed with the first release.",
    )
    idle: PositiveFloat = Field(600.0, description="Seconds after which an unused trainer ends.")
    partition_id: NonNegativeInt | None = Field(None, description="Flower's own.")
    num_partitions: PositiveInt | None = Field(None, description="Flower's own.")

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> "Owner":
        """Raises UserError, naming the key, its value and what it may be."""
        try:
            return cls.model_validate(dict(node_config))
        except ValidationError as e:
            known = [name.replace("_", "-") for name in cls.model_fields]
            lines = dict.fromkeys(refusals.line(error, known) for error in e.errors())
            raise UserError(
                "the node's settings (--node-config) are wrong:\n"
                + "\n".join(f"  {line}" for line in lines)
            ) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would take epsilon=true for 1
            raise ValueError("no setting is true or false")
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if not names:
            raise ValueError("name at least one method, or leave it out for the built-in ones")
        return names

    @model_validator(mode="after")
    def _account(self) -> "Owner":
        if self.data is not None and self.client is None:
            raise ValueError("data needs client too: whose rows these are, the same for ever")
        if self.epsilon is not None and self.data is None:
            raise ValueError("epsilon needs data too: the rows that the account is of")
        if self.delta is not None and self.epsilon is None:
            raise ValueError("delta needs epsilon too: it is the other half of that budget")
        if self.revision is not None and (self.model is None or is_folder(self.model)):
            raise ValueError("revision needs model too, as a name of the hub")
        if fault := devices.fault(self.device, self.parallel):
            raise ValueError(fault)
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """Each device by name."""
        return devices.named(self.device)

    @cached_property
    def template(self) -> str | None:
        """The chat template's text. Raises UserError where its file cannot be read."""
        return None if self.chat_template is None else refusals.text(self.chat_template)

    def allow(self, run_config: Mapping[str, Any], payload_bytes: int) -> None:
        """Raises Refused where a run, by Flower's flat configuration, or a message of that size
        is not allowed here; nothing was loaded then, nor code of anybody's imported."""
        if payload_bytes > self.max_payload * MB:
            raise refused("max-payload", f"{self.max_payload:g} MB", f"{payload_bytes / MB:.1f}")
        config, _ = self.resolve(run_config)
        if config.run.rounds > self.max_rounds:
            raise refused("max-rounds", f"{self.max_rounds} rounds", config.run.rounds)
        self._steps(config.train.steps or 0)
        refusals.rows(self, config)
        refusals.place(self, config.model.name)
        refusals.template(self, config.model.chat_template)
        refusals.targets(config)
        refusals.shares(self, config)
        if self.epsilon is not None:
            refusals.private(self, config)

    def allow_rows(self, config: "Config", rows: int, round: int = 0) -> None:
        """Raises UserError where what a round comes to on this node's training rows, so many, is
        not allowed here."""
        from fedlora.privacy import plan

        if round > self.max_rounds:
            raise refused("max-rounds", f"{self.max_rounds} rounds", f"round {round}")
        self._steps(config.train.steps_a_round(rows))
        # The server is to find this out before; an owner's account does not rest on that.
        if self.epsilon is not None and (unfit := plan.refusal(config, rows)):
            raise Refused(unfit)

    def resolve(self, run_config: Mapping[str, Any]) -> "tuple[Config, Strategy]":
        """The run's configuration and method, as everybody reads them. Raises Refused where they
        are wrong or the method is none of the owner's, which then is not imported."""
        import strategies
        from fedlora import settings

        def load(name: str) -> "type[Strategy]":
            allowed = self.methods or tuple(strategies.BUILTIN)
            if name not in allowed:
                raise refused("methods", ", ".join(allowed), f"strategy.name = {name}")
            try:
                return strategies.load(name)
            except Exception:  # its words are a module's, with this machine's paths
                log.exception("the method %s cannot be loaded", name)
                raise Refused(f"{name} cannot be loaded on this node: its log says more") from None

        try:
            tree = settings.from_flat(flat(run_config))
            return settings.resolve(tree, load, ignore=strategies.settings())
        except Refused:
            raise
        except UserError as e:  # in words of the run's configuration alone
            raise Refused(str(e)) from None

    def applied(self, config: "Config") -> "Config":
        """The run's configuration with what the owner settles."""
        privacy = config.privacy
        if self.epsilon is not None and privacy.epsilon is not None:
            least = min(self.epsilon, privacy.epsilon)
            privacy = privacy.model_copy(update={"epsilon": least})
        model: dict[str, Any] = {"chat_template": self.template}
        if self.model:
            model |= {"name": self.model, "revision": self.revision, "gguf": None}
        return config.model_copy(
            update={
                "data": config.data.model_copy(update=self._columns(config)),
                "model": config.model.model_copy(update=model),
                "privacy": privacy,
                "simulation": type(config.simulation)(),  # says nothing about this machine
            }
        )

    def _columns(self, config: "Config") -> dict[str, str]:
        """What the owner says of the rows' form. In a private run the run says nothing of it, since
        whether rows are of a form is a question about them."""
        own = {key: getattr(self, key) for key in COLUMNS}
        columns = {key: column for key, column in own.items() if column is not None}
        if columns.keys() & {"prompt", "context", "response"}:
            return {**columns, "format": "columns"}
        return {**columns, "format": "auto"} if self.data and config.privacy.on else columns

    def _steps(self, steps: int) -> None:
        if steps > self.max_steps:
            raise refused("max-steps", f"{self.max_steps} steps a round", steps)


def owner_of(node_config: Mapping[str, Any]) -> Owner | None:
    """The owner of a node; None for a partition of somebody's simulation. Raises UserError."""
    simulated = "partition-id" in node_config and node_config.keys() <= SIMULATED
    return None if simulated else Owner.read(node_config)


def flat(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration without what `fedlora submit` tells the server alone."""
    return {k: v for k, v in run_config.items() if not k.startswith("submit.")}
