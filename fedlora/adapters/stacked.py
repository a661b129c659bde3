"""Many copies of an adapter in one pass over the frozen model.

Shapes: copies k = 1, 2, … take c_k rows each, which lie copy by copy in a batch of Σ c_k. Copies
beside each other that take equally many are a block of K copies with b rows each, and go through a
layer in one batched product, without a copy a row. For a layer of m outputs and n inputs at rank r,
c is b times the layer's middle dimensions (its tokens):

    x (K b, …, n), seen as h (K, c, n)
    A (K, r, n)  B (K, m, r)  R (K, r, r)  M (K, m)  d (K, r)  b (K, m)  head.<parameter> (K, …)

A part that is not stacked has no K and is shared by all copies, as are VeRA's projections U and V,
the residual, and the scale s unless scales are given. By broadcasting the products below serve
both.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedlora.adapters.adapter import NAME, Adapter
from fedlora.errors import UserError
from fedlora.tensors import Tensors, module_of, part_of

# (copies of the tensors, each (Σ K, …); rows of each copy; each copy's s, (Σ K,), or the layer's).
# Inside, the model takes one batch of these rows, forward and backward, and again where a backward
# pass recomputes activations. Raises UserError where copies or the batch do not fit.
Pass = Callable[[Tensors, Sequence[int], Tensor | None], AbstractContextManager[None]]


@contextmanager
def stacked(adapter: Adapter, names: Collection[str]) -> Iterator[Pass]:
    """Inside, `adapter.model` computes with copies of these tensors, in the passes entered by what
    this yields: to swap the layers' forwards takes far longer than to enter a pass.

    Gradients reach the copies as they would parameters. Every row has dropout masks of its own.
    Not to be nested.

    Args:
        names: those that differ between copies. The others are shared as they are loaded.

    Raises:
        UserError: an unknown name; inside, an adapted layer or head that is given something else
            than the batch's rows.
    """
    live = adapter.live()
    _check(names, live)
    rows = _Rows({k: live[k].shape for k in names})
    base = adapter.model.get_base_model()
    with ExitStack() as undo:
        note = adapter.model.register_forward_pre_hook(rows.check_batch, with_kwargs=True)
        undo.callback(note.remove)
        for name in dict.fromkeys(module_of(k) for k in names if part_of(k) != "head"):
            layer = base.get_submodule(name)
            _replace(layer, _layer(adapter, name, layer, live, rows), undo)
        for name, wrapper in (
            base.named_modules() if any(part_of(k) == "head" for k in names) else ()
        ):
            prefix = f"head.{name}."
            own = [k.removeprefix(prefix) for k in names if k.startswith(prefix)]
            if isinstance(wrapper, ModulesToSaveWrapper) and own:
                inner = wrapper.modules_to_save[NAME]
                _replace(wrapper, _head(name, inner, own, rows), undo)
        yield rows.enter


def _check(names: Collection[str], live: Tensors) -> None:
    """Raises UserError for a tensor that cannot differ between copies."""
    own = [k for k in live if module_of(k) != "vera"]
    for name in names:
        if name not in own:
            raise UserError(f"{name} cannot be stacked: this adapter has {', '.join(own)}.")


class _Rows:
    """The rows of a pass on their way through the model, and the copies that they meet.

    Attributes:
        counts: copies of each block; sizes: its rows.
        copies: name -> each block's (K, …); scales: each block's (K, 1, 1), or None.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = shapes
        self.counts: list[int] = []
        self.sizes: list[int] = []
        self.copies: Mapping[str, Sequence[Tensor]] = {}
        self.scales: Sequence[Tensor] | None = None

    @contextmanager
    def enter(
        self, tensors: Tensors, shares: Sequence[int], scales: Tensor | None = None
    ) -> Iterator[None]:
        """See `Pass`."""
        self._check(tensors, shares)
        blocks = [(share, len(list(copies))) for share, copies in groupby(shares)]
        self.counts = [count for _, count in blocks]
        self.sizes = [share * count for share, count in blocks]
        self.copies = {name: self._blocks(t) for name, t in tensors.items()}
        self.scales = None if scales is None else self._blocks(scales.view(-1, 1, 1))
        try:
            yield
        finally:
            self.counts, self.sizes, self.copies, self.scales = [], [], {}, None

    def _blocks(self, copies: Tensor) -> Sequence[Tensor]:
        return copies.split(self.counts) if len(self.counts) > 1 else (copies,)

    def cut(self, x: Tensor) -> list[Tensor]:
        """(rows, …, n) as each block's (K, c, n)."""
        each = x.split(self.sizes) if len(self.sizes) > 1 else (x,)
        return [t.reshape(k, -1, t.shape[-1]) for t, k in zip(each, self.counts, strict=True)]

    def _check(self, tensors: Tensors, shares: Sequence[int]) -> None:
        for name, tensor in tensors.items():
            if tensor.shape[1:] != self.shapes[name]:
                raise UserError(
                    f"{name} has the shape {tuple(tensor.shape)}; copies of it are stacked as "
                    f"(K, {', '.join(map(str, self.shapes[name]))})."
                )
            if len(tensor) != len(shares):
                raise UserError(
                    f"{name} has {len(tensor)} copies where rows are given to {len(shares)}: give "
                    "each its number of rows."
                )

    def check_batch(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = len(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))
        if given != sum(self.sizes):
            raise UserError(
                f"a batch of {given} rows cannot be divided among {sum(self.counts)} stacked "
                f"copies that take {sum(self.sizes)}: give each copy the rows that it is to have."
            )

    def check(self, name: str, x: Tensor, mend: str) -> None:
        """Other sizes than the batch's may well be divisible by K and yet mix copies."""
        if len(x) != sum(self.sizes):
            raise UserError(
                f"{name} is given {len(x)} rows where the batch has {sum(self.sizes)}, so its "
                f"copies cannot be told apart: {mend}."
            )


def _layer(
    adapter: Adapter, name: str, layer: Any, live: Tensors, rows: _Rows
) -> Callable[..., Tensor]:
    """The forward of PEFT's layer, its casts included, with some parts stacked."""
    vera, (m, n) = adapter.kind == "vera", adapter.shapes[name]
    own = {
        part: f"{name}.{part}" for part in ("db" if vera else "ABRM") if f"{name}.{part}" in live
    }
    fp32 = vera or adapter.dora  # else products are in the format of what comes in
    dtype = live[next(iter(own.values()))].dtype
    dropout = (layer.vera_dropout if vera else layer.lora_dropout)[NAME]
    projections = {"U": live["vera.U"][:m], "V": live["vera.V"][:, :n]} if vera else {}

    def parts(block: int) -> Tensors:
        copies = {p: rows.copies[k][block] for p, k in own.items() if k in rows.copies}
        return {p: live[k] for p, k in own.items()} | projections | copies

    def added(block: int, h: Tensor, y: Tensor) -> Tensor:
        mine = {p: t if fp32 else t.to(h.dtype) for p, t in parts(block).items()}
        if vera:
            return _vera(h, mine)
        scale = layer.scaling[NAME] if rows.scales is None else rows.scales[block]
        delta = _lora(h, mine, scale)
        if not adapter.dora:
            return delta
        seen = h if layer.training and isinstance(dropout, nn.Dropout) else None
        return _dora(y, delta, seen, adapter.weight(name), layer.base_layer, mine, scale)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.check(name, x, "leave it out of adapter.target_modules")
        y: Tensor = layer.base_layer(x, *args, **kwargs)
        h = dropout(x.to(dtype) if fp32 else x)
        each = zip(rows.cut(h), rows.cut(y), strict=True)
        delta = _joined([added(i, *block) for i, block in enumerate(each)], y.shape)
        return (y + delta).to(y.dtype)

    return forward


def _joined(blocks: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Each block's (K, c, m) as one of this shape, (rows, …, m)."""
    if len(blocks) == 1:
        return blocks[0].view(shape)
    return torch.cat([t.flatten(0, 1) for t in blocks]).view(shape)


def _lora(h: Tensor, parts: Tensors, scale: float | Tensor) -> Tensor:
    """(K, c, m): s B A h, or s B R A h where there is an R; the scale where it is cheapest."""
    u = (scale * (h @ parts["A"].mT)).to(h.dtype)
    if "R" in parts:
        u = u @ parts["R"].mT
    return u @ parts["B"].mT


def _dora(
    y: Tensor,
    delta: Tensor,
    seen: Tensor | None,
    W0: Tensor,
    layer: Any,
    parts: Tensors,
    scale: float | Tensor,
) -> Tensor:
    """(K, c, m): what DoRA adds to y (K, c, m), W0's part of which is that of y less the bias, or
    as in PEFT of what dropout left of the inputs, `seen`. With g = M / |W0 + s B A|, a constant to
    the gradient but for M (arXiv:2402.09353, 4.3):  (g - 1) W0 h + g s B A h."""
    W0 = W0.to(delta.dtype)
    g = (parts["M"] / _norms(W0, parts["A"].detach(), parts["B"].detach(), scale)).unsqueeze(-2)
    bias = layer.bias
    plain = y if bias is None else y - bias
    return (g - 1) * (plain if seen is None else seen @ W0.mT) + g * delta


def _norms(W0: Tensor, A: Tensor, B: Tensor, scale: float | Tensor) -> Tensor:
    """(K, m): |W0 + s B A| by row, without a W of each copy: its square is
    |W0|^2 + 2 s <B, W0 A^T> + s^2 <B, B A A^T>, by row."""
    s = scale.squeeze(-1) if isinstance(scale, Tensor) else scale
    mixed, own = (B * (W0 @ A.mT)).sum(-1), (B * (B @ (A @ A.mT))).sum(-1)
    square = W0.square().sum(-1) + 2 * s * mixed + s * s * own
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def _vera(h: Tensor, parts: Tensors) -> Tensor:
    """(K, c, m): diag(b) U diag(d) V h."""
    d, b = (parts[k].unsqueeze(-2) for k in "db")
    return b * ((d * (h @ parts["V"].mT)) @ parts["U"].mT)


def _head(name: str, inner: nn.Module, own: Collection[str], rows: _Rows) -> Callable[..., Tensor]:
    """The forward of a head, whatever it is made of, copy by copy."""

    def one(parameters: Tensors, *inputs: Tensor) -> Tensor:
        return functional_call(inner, parameters, inputs)

    def block(i: int, inputs: Sequence[Tensor]) -> Tensor:
        copies = {k: rows.copies[f"head.{name}.{k}"][i] for k in own}
        each = (x.unflatten(0, (rows.counts[i], -1)) for x in inputs)
        return vmap(one, randomness="different")(copies, *each).flatten(0, 1)

    def forward(*inputs: Tensor) -> Tensor:
        for x in inputs:
            rows.check(name, x, "set adapter.head = 'frozen'")
        blocks = zip(*(x.split(rows.sizes) for x in inputs), strict=True)
        return torch.cat([block(i, own) for i, own in enumerate(blocks)])

    return forward


def _replace(module: Any, forward: Callable[..., Tensor], undo: ExitStack) -> None:
    """An instance's own forward goes before its class's, and the module's hooks still run."""
    module.forward = forward
    undo.callback(delattr, module, "forward")
