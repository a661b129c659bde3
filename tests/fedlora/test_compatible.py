"""Every refusal of a local optimisation says what is wrong, and why, before anything is loaded."""

import pytest

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.strategy import Strategy


def resolve(*overrides):
    return settings.resolve(settings.read(None, overrides), strategies.load)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["train.momentum=0.9"], "train: momentum goes with optimizer = sgd: adamw has moments"),
        (["train.warmup=30", "train.schedule_over=round"], "train: warmup = 30 .* 30 steps of a"),
        (["train.warmup=150"], "train.warmup = 150 is not shorter .* 5 rounds of 30 steps"),
        (["train.lr_ratio=0.5"], "train.lr_ratio = 0.5: .*greater than or equal to 1"),
        (["strategy.name=fedex", "train.optimizer=lora-fa"], "lora-fa .* FedEx: .* no residual"),
        (["strategy.name=fedsa", "train.optimizer=lora-fa"], "FedSA: it leaves A .* all that this"),
        (["strategy.name=fedsb", "train.optimizer=lora-fa"], "adapter.kind = lora-sb trains"),
        (["strategy.name=fedsb", "train.optimizer=lora-plus"], "lora-plus is made for LoRA's A an"),
        (["strategy.name=fedit", "adapter.kind=vera", "train.optimizer=lora-plus"], "kind = vera"),
        (
            ["adapter.init=eva"],
            r"adapter.init = 'eva': no such .*\(known: default, gauss",
        ),
        (["adapter.init=pissa_niter_0"], "adapter.init = 'pissa_niter_0': no such"),
        (["adapter.init=orthogonal", "adapter.rank=5"], "halves the rank, and rank = 5 is odd"),
        (["strategy.name=fslora", "adapter.init=pissa"], "init = pissa .* FSLoRA: .* not be W0"),
        (["strategy.name=fslora", "adapter.init=orthogonal"], "orthogonal does not go with FSLoRA"),
        (["strategy.name=fedsb", "adapter.init=pissa"], "init = pissa is made for LoRA's A and B"),
        (["strategy.name=fedsb", "adapter.init=gaussian"], "kind = lora-sb trains neither"),
        (["strategy.name=fedit", "adapter.kind=vera", "adapter.init=olora"], "kind = vera trains"),
        (["strategy.name=fedex", "adapter.dora=true"], "dora = true .* FedEx: .* W is a quotient"),
        (["strategy.name=fslora", "adapter.dora=true"], "dora = true .* FSLoRA: .* another norm"),
        (["strategy.name=fedsb", "adapter.dora=true"], "adapter.dora = true is made for LoRA's A"),
        (["strategy.name=fedit", "adapter.kind=vera", "adapter.dora=true"], "kind = vera trains"),
        (["strategy.name=fedit", "adapter.dora=true", "adapter.init=pissa"], "norm does not see"),
        (
            ["strategy.name=fedit", "adapter.dora=true", "run.wire=bf16"],
            "wire = bf16 rounds DoRA's M",
        ),
        (
            ["strategy.name=fedit", "adapter.dora=true", "train.optimizer=lora-fa"],
            "DoRA's quotient",
        ),
    ],
)
def test_refused(given, reason):
    """By its key and value, with the reason."""
    with pytest.raises(UserError, match=reason):
        resolve(*given)


@pytest.mark.parametrize("method", strategies.BUILTIN)
def test_what_every_method_takes(method):
    """Schedules, warm-up, FedProx, SGD with momentum."""
    resolve(f"strategy.name={method}", "train.schedule=cosine", "train.warmup=10")
    resolve(f"strategy.name={method}", "train.proximal=0.1", "train.weight_decay=0.1")
    resolve(f"strategy.name={method}", "train.optimizer=sgd", "train.momentum=0.9")


@pytest.mark.parametrize("method", ["fedit", "ffa", "fslora", "local"])
def test_lora_fa_goes_with(method):
    """Methods for which training B alone makes sense."""
    resolve(f"strategy.name={method}", "train.optimizer=lora-fa")


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedex", "fedsa", "local"])
@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"])
def test_initialisations_go_with(method, init):
    """Methods for which a start with B != 0 is still W0 on every client."""
    config, _ = resolve(f"strategy.name={method}", f"adapter.init={init}")
    assert config.adapter.init == init


def test_a_sketch_can_begin_with_b_zero():
    """FSLoRA's clients are at W0 whatever A is, as long as B is zero."""
    resolve("strategy.name=fslora", "adapter.init=gaussian")


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "local"])
@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal"])
def test_dora_goes_with(method, init):
    """Methods that average or keep M like any other part."""
    resolve(f"strategy.name={method}", "adapter.dora=true", f"adapter.init={init}")


def test_a_method_of_ones_own_has_to_train_m():
    """DoRA without its M would be another adapter than what was asked for."""

    class Half(Strategy):
        trained = shared = {"A", "B"}

    with pytest.raises(UserError, match="does not go with Half, which does not train DoRA's M"):
        settings.resolve({"adapter": {"dora": True}}, lambda _: Half)


def test_private_gradients_of_m_are_stacked():
    """Opacus has no rule for M."""
    private = ["strategy.name=fedit", "adapter.dora=true", "privacy.mode=local"]
    resolve(*private, "privacy.epsilon=8")
    with pytest.raises(UserError, match="hooks cannot make gradients of DoRA's M"):
        resolve(*private, "privacy.epsilon=8", "privacy.engine=hooks")
