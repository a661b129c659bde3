"""Methods of somebody's own with mistakes in them, as runs load them by name."""

import torch

from fedlora import Strategy


class Amplifying(Strategy):
    """Takes ten times the step that a client made."""

    def place(self, update, state, round):
        return {k: state[k] + 10 * (t - state[k]) for k, t in update.tensors.items()}


class Overflowing(Strategy):
    """Divides by what may be nothing."""

    def place(self, update, state, round):
        return {k: t / (t - t) for k, t in update.tensors.items()}


class Remembering(Strategy):
    """Lets the mean hold what the noise does not cover."""

    def place(self, update, state, round):
        norm = sum(t.square().sum() for t in update.tensors.values())
        return {**update.tensors, "server/norm": norm.reshape(1)}


class Residual(Strategy):
    """Puts an update where the noise does not come."""

    def place(self, update, state, round):
        layer = next(k for k in update.tensors if k.endswith(".A")).removesuffix(".A")
        A, B = update.tensors[f"{layer}.A"], update.tensors[f"{layer}.B"]
        return {**update.tensors, f"{layer}.D": B @ A}


class Talkative(Strategy):
    """Declares that B and the head stay, and sends all that it is given."""

    shared = {"A"}

    def upload(self, tensors, client, round):
        return tensors


class Smuggling(Strategy):
    """Sends under a name of its own."""

    shared = {"A"}

    def upload(self, tensors, client, round):
        return {**tensors, "layer.B": torch.zeros(1)}


class WritingUpload(Strategy):
    def upload(self, tensors, client, round):
        return {k: t.add_(1) for k, t in tensors.items()}


class WritingPlace(Strategy):
    def place(self, update, state, round):
        return {k: state[k].lerp_(t, 0.5) for k, t in update.tensors.items()}


class WritingBroadcast(Strategy):
    def broadcast(self, state, client, round):
        return {k: t.mul_(1.5) for k, t in state.items()}


class WritingAggregate(Strategy):
    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: state[k].copy_(t) for k, t in mean.items()}


class Assigning(Strategy):
    last: float = 0.0

    def aggregate(self, state, updates, round):
        self.last = updates[0].metrics["loss"]
        return super().aggregate(state, updates, round)


class Integers(Strategy):
    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: t.long() for k, t in mean.items()}


class Removing(Strategy):
    """Takes a part out of the state, after which no client's update would fit."""

    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: None if k.endswith(".A") else t for k, t in mean.items()}


class Infinite(Strategy):
    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: t / 0 for k, t in mean.items()}


class Blinding(Strategy):
    def broadcast(self, state, client, round):
        return {k: t.log() for k, t in super().broadcast(state, client, round).items()}


class Halving(Strategy):
    def rank(self, full, index, client, round):
        return full // 2


class Multiplying(Strategy):
    mixed_ranks = True

    def rank(self, full, index, client, round):
        return 100 * full


class Fractional(Strategy):
    mixed_ranks = True

    def rank(self, full, index, client, round):
        return full / 2


class Uncut(Strategy):
    """Says that ranks differ, and sends everybody everything."""

    mixed_ranks = True

    def rank(self, full, index, client, round):
        return full // 2


class Unscaled(Strategy):
    def scale(self, scaling, rank):
        return float("nan")


class TensorScale(Strategy):
    def scale(self, scaling, rank):
        return torch.tensor(2.0)


class Misspelt(Strategy):
    def agregate(self, state, updates, round):
        return {}
