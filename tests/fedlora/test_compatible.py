"""Every refusal of a local optimisation says what is wrong, and why, before anything is loaded."""

import pytest

import strategies
from fedlora import settings
from fedlora.errors import UserError


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
