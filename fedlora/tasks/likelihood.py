"""What a causal language model says of tokens, without the logits of all of them at once.

Such a model is a body, which makes hidden states h (b, t, d), and a tail, which makes of each
position's the logits of the token behind it, (v,): output layer, scale, softcap. The tail is
frozen, so that a token's loss has one gradient, which is known together with its logits:

    l_i = -log softmax(tail(h_i))[y_i]      g_i = dl_i / dh_i      dL / dh_i = (dL / dl_i) g_i

The logits are made and forgotten in chunks; what is kept is g, (N, d).

Shapes: b rows of a pass, t tokens of its longest, d hidden numbers, v words of the vocabulary; N of
the b t positions are looked at, n of them in a chunk.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

IGNORED = -100  # as a target: a token that is read and not learnt
LOGITS = 2**24  # of a chunk
BYTES = 16  # of one under way: logit, its logarithm of a chance, and their gradients

Tail = Callable[[Tensor], Tensor]  # (1, n, d) -> (n, v)


def likelihood(
    model: Any, inputs: dict[str, Tensor], where: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of N tokens, in fp32 at least and 0 of one that is IGNORED, and whether it
    is the likeliest, (N,) each; by one pass through the model.

    Args:
        model: a causal language model, with or without PEFT around it.
        inputs: what it takes, (b, t) each.
        where: (N,), N > 0: the positions before the tokens, as indices into the b t; each once.
        targets: (N,): the tokens.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = _body(causal)
    if _adapted(causal, body):  # the tail has gradients too, and may be each row's own
        return _compared(_logits(model, causal, inputs, where), targets)
    with _shortened(body) as seen:
        output = model(**inputs, use_cache=False)
    rows, _, words = output.logits.shape
    # A multiple of the rows: where all positions of equal rows are looked at, column by column, a
    # chunk has as many of each row.
    size = max(1, LOGITS // (words * rows)) * rows
    hidden = seen[0].last_hidden_state.flatten(0, 1)
    losses, right = _Likelihood.apply(
        hidden, where, targets, _tail(causal, body, type(seen[0])), size
    )
    return losses, right


def under_way(model: PreTrainedModel, positions: int) -> int:
    """Bytes that the logits of a pass take at most, besides what autograd keeps: of one that looks
    at so many positions, and of a model of any kind."""
    output: Any = model.get_output_embeddings()
    return 0 if output is None else BYTES * min(LOGITS, positions * len(output.weight))


class _Likelihood(torch.autograd.Function):
    """hidden (b t, d) -> losses (N,), right (N,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, where: Tensor, targets: Tensor, tail: Tail, size: int
    ) -> tuple[Tensor, Tensor]:
        learns, found = ctx.needs_input_grad[0], []
        for places, tokens in zip(where.split(size), targets.split(size), strict=True):
            h = hidden.detach()[None].index_select(1, places)
            found.append(_chunk(h, tokens, tail, learns))
        losses, right, g = (torch.cat(each) for each in zip(*found, strict=True))
        ctx.shape = hidden.shape
        ctx.save_for_backward(where, g)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """(dL/dl) g, at its places."""
        where, g = ctx.saved_tensors
        grad = g.new_zeros(ctx.shape)
        grad[where] = (upstream[:, None] * g).to(g.dtype)
        return grad, None, None, None, None


def _chunk(h: Tensor, targets: Tensor, tail: Tail, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(losses (n,), right (n,), g (n, d)) of h (1, n, d); (0,) in place of g unless it `learns`."""
    with torch.set_grad_enabled(learns):
        losses, right = _compared(tail(h.requires_grad_(learns)), targets)
        g = torch.autograd.grad(losses.sum(), h)[0][0] if learns else h.new_empty(0)
    return losses.detach(), right, g


def _compared(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(losses (n,), right (n,)) of logits (n, v)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none")
    return losses, logits.argmax(dim=-1) == targets


def _logits(model: Any, causal: nn.Module, inputs: dict[str, Tensor], where: Tensor) -> Tensor:
    """(N, v): the model's own, made for every row where they are asked for of one."""
    fewer, width = {}, inputs["input_ids"].shape[1]
    some = len(where) < inputs["input_ids"].numel()
    if some and "logits_to_keep" in inspect.signature(causal.forward).parameters:
        columns, place = (where % width).unique(return_inverse=True)
        fewer, where = {"logits_to_keep": columns}, where // width * len(columns) + place
    logits: Tensor = model(**inputs, **fewer, use_cache=False).logits
    return logits.flatten(0, 1).index_select(0, where)


def _body(causal: Any) -> nn.Module:
    """The pretrained model inside one with an output layer."""
    decoder = causal.get_decoder()
    inside = (m for m in causal.children() if isinstance(m, PreTrainedModel))
    return decoder if decoder is not causal else next(inside, causal)


def _adapted(causal: nn.Module, body: nn.Module) -> bool:
    """Whether anything is trained behind the body, or may be."""
    inside = set(body.modules())
    return body is causal or any(
        isinstance(m, BaseTunerLayer) or any(p.requires_grad for p in m.parameters(recurse=False))
        for m in causal.modules()
        if m not in inside
    )


@contextmanager
def _shortened(body: nn.Module) -> Iterator[list[Any]]:
    """Inside, the body hands on hidden states of no position; what it made is in the list."""
    seen: list[Any] = []

    def shorten(_: nn.Module, inputs: Any, output: Any) -> Any:
        seen.append(output)
        return type(output)(last_hidden_state=output.last_hidden_state[:, :0])

    handle = body.register_forward_hook(shorten)
    try:
        yield seen
    finally:
        handle.remove()


def _tail(causal: nn.Module, body: nn.Module, kind: type) -> Tail:
    """The model with another body, which hands on what it is given as an output of this kind."""

    def tail(h: Tensor) -> Tensor:
        unread = h.new_zeros(h.shape[:2], dtype=torch.int64)
        own = vars(body).get("forward")
        body.forward = lambda *_, **__: kind(last_hidden_state=h)
        try:
            return causal(input_ids=unread, use_cache=False).logits[0]
        finally:
            del body.forward
            if own is not None:
                body.forward = own

    return tail
