"""What a private run refuses, and the noise it solves for each client.

A refusal that belongs to the configuration comes before anything else happens, from `resolve`; one
that belongs to the clients from `check_clients`. Each names the key and what to write in its place.
"""

import pytest

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.privacy import plan
from fedlora.privacy.accounting import epsilon

BUDGET = "privacy.epsilon=3"
CENTRAL = (BUDGET, "privacy.mode=central")
ROWS = {"a": 600, "b": 90, "c": 40}


def resolve(*overrides):
    return settings.resolve(settings.read(None, overrides), strategies.load)[0]


@pytest.mark.parametrize("init", ["clients", "sketch"])
@pytest.mark.parametrize("budget", [(BUDGET,), CENTRAL, ("privacy.noise_multiplier=1",)])
def test_gradients_of_clients_are_no_start_of_a_private_run(init, budget):
    """Fed-SB's client gradients would leave without noise."""
    with pytest.raises(UserError, match=f"strategy.init = {init} .*'server'.*'xs'"):
        resolve(*budget, "strategy.name=fedsb", f"strategy.init={init}")
    assert resolve("strategy.name=fedsb", f"strategy.init={init}").method == "fedsb"


@pytest.mark.parametrize("init", ["server", "xs"])
def test_other_starts_are_fine(init):
    """Public rows, or none."""
    assert resolve(BUDGET, "strategy.name=fedsb", f"strategy.init={init}").privacy.on


def test_central_noise_needs_a_mean():
    """FedEx's residual is no sum of clipped updates; every mean is, and local noise fits all."""
    wanted = r"privacy.mode = central .*FedEx.*privacy.mode = local"
    with pytest.raises(UserError, match=wanted) as refused:
        resolve(*CENTRAL)
    for method in ("fedit", "ffa", "fedsa", "fedsb", "fslora"):
        assert resolve(*CENTRAL, f"strategy.name={method}").privacy.central
        assert method in str(refused.value)
    for method in strategies.BUILTIN:
        assert resolve(BUDGET, f"strategy.name={method}").privacy.local


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
def test_central_noise_needs_the_wire_that_was_clipped(wire):
    """Rounding after clipping would go past the bound; after local noise it does no harm."""
    with pytest.raises(UserError, match=f"run.wire = {wire} .*run.wire = fp32"):
        resolve(*CENTRAL, "strategy.name=fedit", f"run.wire={wire}")
    assert resolve(BUDGET, f"run.wire={wire}").privacy.local


def test_hooks_know_no_vera():
    """Its vectors are no layer's weights."""
    vera = ("strategy.name=fedsa", "adapter.kind=vera")
    with pytest.raises(UserError, match=r"privacy.engine = hooks .*privacy.engine = stacked"):
        resolve(BUDGET, "privacy.engine=hooks", *vera)
    assert resolve(BUDGET, *vera).privacy.on


def test_a_batch_larger_than_the_rows():
    """No row can be drawn with a chance above one: the client and its rows are named."""
    with pytest.raises(UserError, match=r"client c: train.batch_size = 41 .* 40 .*to 40 or less"):
        plan.check_clients(resolve(BUDGET, "train.batch_size=41"), ROWS)
    plan.check_clients(resolve(BUDGET, "train.batch_size=40"), ROWS)


def test_a_delta_that_gives_a_row_away():
    """δ ≥ 1/n allows to publish a row outright: the client with the most rows decides."""
    for delta in (1 / 600, 0.01):
        config = resolve(BUDGET, f"privacy.delta={delta}")
        with pytest.raises(UserError, match=r"client a: privacy.delta = .* 600 training rows.*lea"):
            plan.check_clients(config, ROWS)
    plan.check_clients(resolve(BUDGET, f"privacy.delta={0.999 / 600}"), ROWS)


def test_a_delta_that_gives_a_client_away():
    """In central mode the n of 1/n is that of the clients."""
    rows = {str(i): 9 for i in range(50)}
    central = (*CENTRAL, "strategy.name=fedit")
    with pytest.raises(UserError, match=r"privacy.delta = 0.02 .* 50 clients.*leave it out"):
        plan.check_clients(resolve(*central, "privacy.delta=0.02"), rows)
    plan.check_clients(resolve(*central, "privacy.delta=0.0199"), rows)


@pytest.mark.parametrize("mode", ["local", "central"])
def test_an_epsilon_that_no_noise_reaches(mode):
    """Said before the first round, by key and with a way out."""
    budget = ("privacy.epsilon=0.01", "privacy.delta=1e-12")
    config = resolve(*budget, f"privacy.mode={mode}", "strategy.name=fedit")
    with pytest.raises(UserError, match=r"privacy.epsilon = 0.01 .*larger epsilon"):
        plan.check_clients(config, ROWS)


def test_without_privacy_nothing_is_refused():
    """The same clients and settings, no budget."""
    odd = ("strategy.name=fedsb", "strategy.init=clients", "run.wire=bf16", "train.batch_size=999")
    plan.check_clients(resolve(*odd), ROWS)
    assert plan.refusal(resolve(*odd), 3) == ""


def test_central_noise_asks_nothing_of_clients():
    """A client with fewer rows than a batch trains there as ever."""
    config = resolve(*CENTRAL, "strategy.name=fedit", "train.batch_size=999")
    assert plan.refusal(config, 3) == ""
    plan.check_clients(config, ROWS)


def spent(mechanism, steps, kind="rdp"):
    return epsilon(
        [(mechanism.noise_multiplier, mechanism.sample_rate, steps)], mechanism.delta, kind
    )


@pytest.mark.parametrize("target", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("rows", ROWS.values())
def test_each_clients_noise_uses_its_budget_and_no_more(target, rows):
    """ε after all planned steps, at q = batch / n and δ = 1/(2n), is within 2 % below the target;
    another step a round would not be, and a smaller client gets more noise."""
    config = resolve(f"privacy.epsilon={target}", "train.steps=7", "train.batch_size=8")
    mechanism = plan.client_mechanism(config, rows, rounds=4)
    assert mechanism.sample_rate == 8 / rows
    assert mechanism.delta == 1 / (2 * rows)
    assert 0.98 * target <= spent(mechanism, 4 * 7) <= target
    assert spent(mechanism, 5 * 7) > target
    if rows > 40:
        fewer = plan.client_mechanism(config, 40, rounds=4)
        assert fewer.noise_multiplier > mechanism.noise_multiplier


def test_epochs_are_counted_in_steps():
    """⌈n / batch⌉ steps an epoch, the short batch's too."""
    config = resolve(
        BUDGET, "train.steps=null", "train.epochs=3", "train.batch_size=8", "privacy.accountant=prv"
    )
    mechanism = plan.client_mechanism(config, 90, rounds=2)
    assert 0.98 * 3 <= spent(mechanism, 2 * 3 * 12, "prv") <= 3


def test_a_noise_that_is_given_is_kept():
    """With an ε too, which then says where to stop."""
    for budget in ((), (BUDGET,)):
        config = resolve("privacy.noise_multiplier=0.7", "privacy.delta=1e-6", *budget)
        mechanism = plan.client_mechanism(config, 100, rounds=9)
        assert mechanism.noise_multiplier == 0.7
        assert (mechanism.sample_rate, mechanism.delta) == (0.16, 1e-6)
        plan.check_clients(config, ROWS)


@pytest.mark.parametrize(
    ("rounds", "sampled", "clients", "expected"),
    [(5, "1.0", 4, 5), (5, "0.5", 4, 3), (10, "3", 9, 4), (6, "1", 3, 2), (7, "9", 3, 7)],
)
def test_the_rounds_that_a_client_is_expected_in(rounds, sampled, clients, expected):
    """rounds · sampled / clients, rounded up."""
    run = resolve(f"run.rounds={rounds}", f"run.clients_per_round={sampled}").run
    assert plan.participations(run, clients) == expected


def test_the_servers_noise():
    """One release a round of a sum over clients that come with the chance q."""
    config = resolve(*CENTRAL, "strategy.name=fedit", "run.clients_per_round=0.3", "run.rounds=20")
    mechanism = plan.server_mechanism(config, 50)
    assert mechanism.sample_rate == 15 / 50
    assert mechanism.delta == 1 / 100
    assert 0.98 * 3 <= spent(mechanism, 20) <= 3


def test_the_noise_of_scores():
    """A count of held-out rows, all of them in it, once a round; with σ alone there is no budget
    that it could be solved for."""
    mechanism = plan.score_mechanism(resolve(BUDGET), 90, 6)
    assert (mechanism.sample_rate, mechanism.delta) == (1.0, 1 / 180)
    assert 0.98 * 3 <= spent(mechanism, 6) <= 3
    assert plan.score_mechanism(resolve("privacy.noise_multiplier=1"), 90, 6) is None
