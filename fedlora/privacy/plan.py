"""What a private run asks of its configuration and clients, and each client's noise for it.

n is a client's number of training rows, q = batch_size / n the chance of each row to be in a step
(Poisson sampling), σ the noise multiplier, ε and δ the budget of one client over the whole run.
"""

import math
from collections.abc import Mapping

from fedlora.config import Config, Run
from fedlora.errors import UserError
from fedlora.privacy import accounting
from fedlora.privacy.accounting import Mechanism
from fedlora.strategy import Strategy, is_linear


def check(config: Config, strategy: Strategy) -> None:
    """Raises UserError where this method or adapter cannot be private as configured."""
    privacy, name = config.privacy, type(strategy).__name__
    if not privacy.on:
        return
    if (init := strategy.model_dump().get("init")) in ("clients", "sketch"):
        raise UserError(
            f"strategy.init = {init} sends gradients of clients' rows, which no noise protects: "
            "with [privacy] use strategy.init = 'server' (public rows) or 'xs' (no rows)"
        )
    if privacy.central and not is_linear(strategy):
        raise UserError(
            f"privacy.mode = central adds noise once, to a sum of updates, but {name} is no "
            "weighted mean of updates: use a method that is (fedit, ffa, fedsa, fedsb, fslora), or "
            "privacy.mode = local, which any method can have"
        )
    if privacy.central and config.run.wire != "fp32":
        raise UserError(
            f"run.wire = {config.run.wire} rounds updates after they were clipped: with "
            "privacy.mode = central use run.wire = fp32"
        )
    if privacy.central and config.run.keep == "updates":
        raise UserError(
            "run.keep = updates would keep clients' updates as they came, which privacy.mode = "
            "central protects and hands to nobody: use run.keep = latest or all"
        )
    if privacy.central and (live := sorted({"wandb", "mlflow"} & {*config.run.track})):
        raise UserError(
            f"run.track = {', '.join(live)} keeps when each round came, and how long a round took "
            "tells how many clients were in it, which privacy.mode = central keeps secret: use "
            "run.track = tensorboard, or none"
        )
    if privacy.engine == "hooks" and config.adapter.kind == "vera":
        raise UserError(
            "privacy.engine = hooks cannot make gradients of VeRA's vectors row by row: use "
            "privacy.engine = stacked"
        )
    if privacy.engine == "hooks" and config.adapter.dora:
        raise UserError(
            "privacy.engine = hooks cannot make gradients of DoRA's M row by row: use "
            "privacy.engine = stacked"
        )
    if privacy.engine == "hooks" and config.model.gradient_checkpointing:
        raise UserError(
            "privacy.engine = hooks makes rows' gradients of activations that were kept, and "
            "model.gradient_checkpointing keeps none: use privacy.engine = stacked"
        )
    if privacy.local and config.model.quantize == "8bit":
        raise UserError(
            "model.quantize = 8bit treats columns with outliers apart, which those are all rows of "
            "a pass decide, so that a row's gradient depends on others and clipping it bounds "
            "nothing: use 4bit, or none"
        )


def refusal(config: Config, rows: int) -> str:
    """Why a client with so many training rows cannot train by DP-SGD, or ""."""
    batch = config.train.batch_size
    if not config.privacy.local:
        return ""
    if batch > rows:
        return (
            f"train.batch_size = {batch} is more than its {rows} training rows: private training "
            f"draws each row with the chance batch_size / rows; set train.batch_size to {rows} or "
            "less, or leave this client out"
        )
    return _large_delta(config, rows, "training rows")


def check_clients(config: Config, rows: Mapping[str, int]) -> None:
    """Raises UserError where a client cannot train as configured, or no noise reaches ε.

    Args:
        rows: training rows by client, those of every client there is.
    """
    if config.privacy.central:
        if wrong := _large_delta(config, len(rows), "clients"):
            raise UserError(wrong)
        server_mechanism(config, len(rows))
    if config.privacy.local:
        for client, count in rows.items():
            if wrong := refusal(config, count):
                raise UserError(f"client {client}: {wrong}")
            rounds = participations(config.run, len(rows))
            made = client_mechanism(config, count, rounds)
            steps = rounds * config.train.steps_a_round(count)
            whole = [(made.noise_multiplier, made.sample_rate, steps)]
            # A given σ was not solved for, and the accountant may refuse it late in the run.
            accounting.epsilon(whole, made.delta, config.privacy.accountant)


def client_mechanism(config: Config, rows: int, rounds: int) -> Mechanism:
    """DP-SGD's noise for a client of so many rows that takes part in so many rounds.

    Raises UserError where no noise reaches the target.
    """
    rate = config.train.batch_size / rows
    return _mechanism(config, rows, rate, rounds * config.train.steps_a_round(rows))


def server_mechanism(config: Config, clients: int) -> Mechanism:
    """The server's noise for one release a round of a sum over sampled clients."""
    rate = config.run.sampled(clients) / clients
    return _mechanism(config, clients, rate, config.run.rounds)


def score_mechanism(config: Config, rows: int, rounds: int) -> Mechanism | None:
    """The noise on a count of right answers on held-out rows, released once a round; None where
    no ε is set that it could be solved for. No row is both trained on and held out, so each set of
    rows has the whole budget (parallel composition).

    Args:
        rows: training rows, which δ is taken from.
    """
    target, delta = config.privacy.epsilon, _delta(config, rows)
    if target is None:
        return None
    sigma = accounting.noise_multiplier(target, delta, 1.0, rounds, config.privacy.accountant)
    return Mechanism(sigma, 1.0, delta)


def participations(run: Run, clients: int) -> int:
    """The rounds that a client is expected to be sampled for, rounded up."""
    return math.ceil(run.rounds * run.sampled(clients) / clients)


def _mechanism(config: Config, units: int, rate: float, steps: int) -> Mechanism:
    privacy, delta = config.privacy, _delta(config, units)
    sigma = privacy.noise_multiplier
    if sigma is None:
        assert privacy.epsilon is not None
        kind = privacy.accountant
        sigma = accounting.noise_multiplier(privacy.epsilon, delta, rate, steps, kind)
    return Mechanism(sigma, rate, delta)


def _delta(config: Config, units: int) -> float:
    return config.privacy.delta or 1 / (2 * units)


def _large_delta(config: Config, units: int, what: str) -> str:
    delta = config.privacy.delta
    if delta is None or delta < 1 / units:
        return ""
    return (
        f"privacy.delta = {delta:g} is not below 1/n = {1 / units:.3g} for {units} {what}: at that "
        "δ, publishing one of them would count as private; leave it out for 1/(2n), or lower it"
    )
