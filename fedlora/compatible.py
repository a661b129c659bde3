"""What of the adapter and the local optimisation does not go with a method or an adapter, and why.

Found before anything is trained, from the configuration alone.
"""

from collections.abc import Iterator

from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.strategy import Strategy


def check(config: Config, strategy: Strategy) -> None:
    """Raises UserError where this configuration asks for what the method or the adapter refuses."""
    _check_warmup(config)
    name = type(strategy).__name__
    for setting, key in _asked(config):
        if config.adapter.kind != "lora":
            raise UserError(
                f"{setting} is made for LoRA's A and B, and adapter.kind = {config.adapter.kind} "
                "trains neither: leave it out, or choose a method on LoRA"
            )
        if why := strategy.refuses.get(key):
            raise UserError(f"{setting} does not go with {name}: {why}")
    if config.adapter.dora:
        _check_dora(config, strategy)
    if config.train.optimizer == "lora-fa" and strategy.shared & {"A", "B"} == {"A"}:
        raise UserError(
            f"train.optimizer = lora-fa does not go with {name}: it leaves A as it is, which is "
            "all that this method shares; use another optimizer, or a method that shares B"
        )


def _asked(config: Config) -> Iterator[tuple[str, str]]:
    """Each setting that not everything goes with, as it reads, and its name in `refuses`."""
    if config.train.optimizer in ("lora-plus", "lora-fa"):
        yield f"train.optimizer = {config.train.optimizer}", config.train.optimizer
    if config.adapter.init != "default":
        key = "init" if config.adapter.begins_full else ""
        yield f"adapter.init = {config.adapter.init}", key
    if config.adapter.dora:
        yield "adapter.dora = true", "dora"


def _check_dora(config: Config, strategy: Strategy) -> None:
    if "M" not in strategy.trained:
        raise UserError(
            f"adapter.dora = true does not go with {type(strategy).__name__}, which does not train "
            "DoRA's M: leave it out, or add M to what the method trains"
        )
    if config.train.optimizer == "lora-fa":
        raise UserError(
            "train.optimizer = lora-fa does not go with adapter.dora = true: its step for B is the "
            "best for W0 + s·B·A, not for DoRA's quotient; use another optimizer"
        )
    if config.run.wire != "fp32":
        raise UserError(
            f"run.wire = {config.run.wire} rounds DoRA's M, norms of whole rows, by more than a "
            "round may move them: with adapter.dora = true use run.wire = fp32"
        )


def _check_warmup(config: Config) -> None:
    train = config.train
    if train.steps and 0 < config.run.rounds * train.steps <= train.warmup:
        raise UserError(
            f"train.warmup = {train.warmup} is not shorter than the whole training, "
            f"{config.run.rounds} rounds of {train.steps} steps: lower it"
        )
