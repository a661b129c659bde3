"""Many copies of an adapter in one pass over the frozen model.

Shapes: K copies with b rows each make a batch of K b rows, copy by copy. For a layer of m outputs
and n inputs at rank r, c is b times the layer's middle dimensions (its tokens):

    x (K b, …, n), seen as h (K, c, n)
    A (K, r, n)  B (K, m, r)  R (K, r, r)  M (K, m)  d (K, r)  b (K, m)  head.<parameter> (K, …)

A part that is not stacked has no K and is shared by all copies, as are VeRA's projections U and V,
the residual, and the scale s unless scales (K,) are given. By broadcasting the products below serve
both.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedlora.adapters.adapter import NAME, Adapter
from fedlora.errors import UserError
from fedlora.tensors import Tensors, module_of, part_of


@contextmanager
def stacked(adapter: Adapter, tensors: Tensors, scales: Tensor | None = None) -> Iterator[None]:
    """Inside, `adapter.model` takes K b rows and computes the k-th b of them with copy k.

    Gradients reach `tensors` as they would parameters. Every row has dropout masks of its own.
    A backward pass that recomputes activations belongs inside too. Not to be nested.

    Args:
        tensors: name -> (K, *shape), the parts that differ between copies. The others are shared
            as they are loaded.
        scales: (K,), each copy's s; by default the layer's, for all. VeRA has none.

    Raises:
        UserError: an unknown name or a wrong shape; inside, a batch that K does not divide, or an
            adapted layer or head that is given something else than the batch's rows.
    """
    live = adapter.live()
    batch = _Batch(_copies(live, tensors))
    each = None if scales is None else scales.view(-1, 1, 1)
    base = adapter.model.get_base_model()
    with ExitStack() as undo:
        note = adapter.model.register_forward_pre_hook(batch.note, with_kwargs=True)
        undo.callback(note.remove)
        for name in dict.fromkeys(module_of(k) for k in tensors if part_of(k) != "head"):
            layer, parts = base.get_submodule(name), _parts(adapter, name, live, tensors)
            _replace(layer, _layer(adapter, name, layer, parts, each, batch), undo)
        for name, wrapper in base.named_modules():
            prefix = f"head.{name}."
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            if isinstance(wrapper, ModulesToSaveWrapper) and own:
                _replace(wrapper, _head(name, wrapper.modules_to_save[NAME], own, batch), undo)
        yield


class _Batch:
    """The batch on its way through the model: so many rows, of K copies."""

    def __init__(self, copies: int) -> None:
        self.copies = copies
        self.rows = 0

    def note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows = len(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))
        if self.rows % self.copies:
            raise UserError(
                f"a batch of {self.rows} rows cannot be divided evenly among {self.copies} stacked "
                "copies: give each copy the same number of rows."
            )

    def check(self, name: str, x: Tensor, mend: str) -> None:
        """Other sizes than the batch's may well be divisible by K and yet mix copies."""
        if len(x) != self.rows:
            raise UserError(
                f"{name} is given {len(x)} rows where the batch has {self.rows}, so its copies "
                f"cannot be told apart: {mend}."
            )


def _parts(adapter: Adapter, name: str, live: Tensors, tensors: Tensors) -> Tensors:
    """A layer's parts, each (…) or (K, …), and what it sees of VeRA's projections."""
    kinds = "db" if adapter.kind == "vera" else "ABRM"
    names = {part: f"{name}.{part}" for part in kinds}
    parts = {part: tensors.get(k, live[k]) for part, k in names.items() if k in live}
    if adapter.kind == "vera":
        m, n = adapter.shapes[name]
        parts |= {"U": live["vera.U"][:m], "V": live["vera.V"][:, :n]}
    return parts


def _layer(
    adapter: Adapter, name: str, layer: Any, parts: Tensors, scales: Tensor | None, batch: _Batch
) -> Callable[..., Tensor]:
    """The forward of PEFT's layer, its casts included, with some parts stacked."""
    vera, n = adapter.kind == "vera", adapter.shapes[name][1]
    dtype = next(iter(parts.values())).dtype
    scale = None if vera else (layer.scaling[NAME] if scales is None else scales)
    dropout = (layer.vera_dropout if vera else layer.lora_dropout)[NAME]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batch.check(name, x, "leave it out of adapter.target_modules")
        y: Tensor = layer.base_layer(x, *args, **kwargs)
        h = dropout(x.to(dtype)).reshape(batch.copies, -1, n)
        delta = _vera(h, parts) if scale is None else _lora(h, parts, scale)
        if scale is not None and adapter.dora:
            seen = h if layer.training and isinstance(dropout, nn.Dropout) else None
            base = y.reshape(batch.copies, -1, delta.shape[-1])
            delta = _dora(base, delta, seen, adapter.weight(name), layer.base_layer, parts, scale)
        return (y + delta.view(y.shape)).to(y.dtype)

    return forward


def _lora(h: Tensor, parts: Tensors, scale: float | Tensor) -> Tensor:
    """(K, c, m): s B A h, or s B R A h where there is an R; the scale where it is cheapest."""
    u = scale * (h @ parts["A"].mT)
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


def _head(name: str, inner: nn.Module, own: Tensors, batch: _Batch) -> Callable[..., Tensor]:
    """The forward of a head, whatever it is made of, copy by copy."""

    def one(parameters: Tensors, *inputs: Tensor) -> Tensor:
        return functional_call(inner, parameters, inputs)

    def forward(*inputs: Tensor) -> Tensor:
        for x in inputs:
            batch.check(name, x, "set adapter.head = 'frozen'")
        each = (x.unflatten(0, (batch.copies, -1)) for x in inputs)
        return vmap(one, randomness="different")(own, *each).flatten(0, 1)

    return forward


def _replace(module: Any, forward: Callable[..., Tensor], undo: ExitStack) -> None:
    """An instance's own forward goes before its class's, and the module's hooks still run."""
    module.forward = forward
    undo.callback(delattr, module, "forward")


def _copies(live: Tensors, tensors: Tensors) -> int:
    """K, once every name and shape is right."""
    own = {k: t for k, t in live.items() if module_of(k) != "vera"}
    copies = {len(t) if t.ndim else 0 for t in tensors.values()}
    for name, tensor in tensors.items():
        if name not in own:
            raise UserError(f"{name} cannot be stacked: this adapter has {', '.join(own)}.")
        if tensor.shape[1:] != own[name].shape:
            raise UserError(
                f"{name} has the shape {tuple(tensor.shape)}; copies of it are stacked as "
                f"(K, {', '.join(map(str, own[name].shape))})."
            )
    if len(copies) != 1 or 0 in copies:
        raise UserError(
            f"stacked parts have {sorted(copies)} copies: give each the same number, at least one."
        )
    return copies.pop()
